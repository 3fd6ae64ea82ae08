//! Tables, once or live.

use std::io::{self, Write};

use enlist::Entry;

use crate::output::{Output, Paint, To, endpoints, health};

const HEAD: [&str; 7] = ["ID", "ENDPOINTS", "WEIGHT", "VERSION", "ZONE", "HEALTH", "METADATA"];

/// Control characters, which would move the cursor, made visible.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn row(entry: &Entry) -> [String; 7] {
    let instance = entry.instance();
    let metadata: Vec<_> = instance.metadata().iter().map(|(key, value)| format!("{key}={value}")).collect();
    let or_dash = |text: Option<&str>| plain(text.unwrap_or("-"));
    [
        plain(instance.id().as_str()),
        plain(&endpoints(instance).join(",")),
        instance.weight().to_string(),
        or_dash(instance.version()),
        or_dash(instance.zone()),
        health(instance.health()).to_owned(),
        if metadata.is_empty() { "-".to_owned() } else { plain(&metadata.join(",")) },
    ]
}

/// The lines of a table of instances.
pub(crate) fn lines<'a>(output: Output, entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
    let rows: Vec<_> = entries.map(row).collect();
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEAD[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&HEAD.map(str::to_owned));
    let mut lines = vec![output.paint(To::Stdout, Paint::Faint, &head)];
    lines.extend(rows.iter().map(|row| line(row)));
    lines
}

/// A picture on a terminal that is drawn over itself.
#[derive(Debug, Default)]
pub(crate) struct Live {
    drawn: usize,
}

impl Live {
    pub(crate) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.drawn > 0 {
            // To the first line of what was drawn, and nothing left of it.
            write!(out, "\x1b[{}A\x1b[0J", self.drawn)?;
        }
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let drawn = fitting(lines, rows);
        // Without wrapping, so that a line is a line however narrow the terminal is.
        write!(out, "\x1b[?7l")?;
        for line in &drawn {
            writeln!(out, "{line}")?;
        }
        write!(out, "\x1b[?7h")?;
        self.drawn = drawn.len();
        out.flush()
    }
}

/// As many lines as a terminal of so many rows can be drawn over with; 0 rows are as many as one likes.
fn fitting(lines: &[String], rows: usize) -> Vec<String> {
    if rows < 3 || lines.len() < rows {
        return lines.to_vec();
    }
    let shown = rows - 2;
    let more = format!("… and {} more lines", lines.len() - shown);
    lines[..shown].iter().cloned().chain([more]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_fits_its_terminal() {
        let lines: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        assert_eq!(fitting(&lines, 0), lines);
        assert_eq!(fitting(&lines, 11), lines);
        assert_eq!(fitting(&lines, 5), ["0", "1", "2", "… and 7 more lines"]);
    }
}
