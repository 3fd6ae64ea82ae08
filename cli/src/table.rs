//! Tables, printed once or redrawn in place.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use enlist::{Entry, Presence, escape::escaped};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::{self, Output, Paint, Text, To, endpoints, health};

/// Spaces between columns.
const GAP: usize = 2;

/// Minimum width of a column on a narrow terminal.
const NARROWEST: usize = 6;

/// Maximum width to which columns are padded without a terminal.
const PADDED: usize = 64;

const HEAD: [&str; 7] = ["ID", "ENDPOINTS", "WEIGHT", "VERSION", "ZONE", "HEALTH", "METADATA"];

fn row(entry: &Entry) -> [String; 7] {
    let instance = entry.instance();
    let metadata: Vec<_> = instance.metadata().iter().map(|(key, value)| format!("{key}={value}")).collect();
    let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
    [
        instance.id().to_string(),
        endpoints(instance).join(","),
        instance.weight().to_string(),
        or_dash(instance.version()),
        or_dash(instance.zone()),
        match entry.presence() {
            Presence::Live => health(instance.health()).to_owned(),
            _ => format!("{}, held", health(instance.health())),
        },
        if metadata.is_empty() { "-".to_owned() } else { metadata.join(",") },
    ]
}

/// Returns the lines of a table of instances.
pub(crate) fn lines<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<Text> {
    arrange(HEAD, entries.map(row))
}

/// Returns the lines of a table with this head. On a terminal, each fits into one row.
pub(crate) fn arrange<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Vec<Text> {
    let rows = rows.map(|row| row.map(|cell| escaped(cell).to_string()));
    let rows: Vec<_> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let mut lines = arranged(&rows, output::columns()).into_iter();
    let head = lines.next().map(|head| Text::painted(Paint::Faint, head, ""));
    head.into_iter().chain(lines.map(Text::from)).collect()
}

/// Returns the rows as lines of at most `columns` cells; `None` cuts nothing.
fn arranged<const N: usize>(rows: &[[String; N]], columns: Option<usize>) -> Vec<String> {
    let widths = widths(rows, columns);
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let cell = if columns.is_some() { cut(cell, width) } else { cell.into() };
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.width()) + GAP));
        }
        // The last cell is not padded.
        let line = line.trim_end();
        columns.map_or(line.into(), |columns| cut(line, columns)).into_owned()
    };
    rows.iter().map(line).collect()
}

/// Returns the widths of the columns: that of the widest cell, limited on a terminal so that a line fits, and elsewhere
/// so that one long cell does not widen every line.
fn widths<const N: usize>(rows: &[[String; N]], columns: Option<usize>) -> [usize; N] {
    let natural: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0));
    let limit = match columns {
        None => PADDED,
        Some(columns) => {
            let room = columns.saturating_sub(GAP * (N - 1));
            let fits = |limit: &usize| natural.iter().map(|width| width.min(limit)).sum::<usize>() <= room;
            (NARROWEST..=room).rev().find(fits).unwrap_or(NARROWEST)
        }
    };
    natural.map(|width| width.min(limit))
}

/// Returns the text if it fits into `width` cells of a terminal, otherwise its beginning and an ellipsis. A Chinese
/// character takes two cells.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return text.into();
    }
    let mut room = width.saturating_sub(1);
    let fits = |character: &char| {
        let rest = room.checked_sub(character.width().unwrap_or(0));
        room = rest.unwrap_or(0);
        rest.is_some()
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Lines on a terminal that are redrawn in place.
#[derive(Debug, Default)]
pub(crate) struct Live {
    drawn: usize,
}

impl Live {
    pub(crate) fn draw(&mut self, lines: &[Text], output: Output) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.drawn > 0 {
            // Moves to the first line of the last drawing and clears from there.
            write!(out, "\x1b[{}A\x1b[0J", self.drawn)?;
        }
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let drawn = fitting(lines, rows);
        // Without wrapping, so that each line takes one row on any terminal.
        write!(out, "\x1b[?7l")?;
        for line in &drawn {
            writeln!(out, "{}", output.render(To::Stdout, line))?;
        }
        write!(out, "\x1b[?7h")?;
        self.drawn = drawn.len();
        out.flush()
    }
}

/// Returns the lines that can be redrawn on a terminal with `rows` rows; 0 stands for an unknown number.
fn fitting(lines: &[Text], rows: usize) -> Vec<Text> {
    if rows < 3 || lines.len() < rows {
        return lines.to_vec();
    }
    let shown = rows - 2;
    let more = format!("… and {} more lines", lines.len() - shown);
    lines[..shown].iter().cloned().chain([more.into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: [&str; 7]) -> [String; 7] {
        cells.map(str::to_owned)
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = [row(HEAD), row(["a", "h:1", "100", "-", "-", "serving", "-"])];
        for columns in [None, Some(200)] {
            assert_eq!(
                arranged(&rows, columns),
                [
                    "ID  ENDPOINTS  WEIGHT  VERSION  ZONE  HEALTH   METADATA",
                    "a   h:1        100     -        -     serving  -"
                ]
            );
        }
    }

    #[test]
    fn a_long_cell_is_cut_on_a_terminal() {
        let long = "x".repeat(70_000);
        let rows = [row(HEAD), row(["a", "h:1", "100", &long, "-", "serving", &long]), row(["é"; 7])];
        for columns in 0..200 {
            for line in arranged(&rows, Some(columns)) {
                assert!(line.chars().count() <= columns.max(1), "{columns}: {line}");
            }
        }
        let at = arranged(&rows, Some(80));
        assert!(at[1].starts_with("a   h:1        100     xxx") && at[1].matches('…').count() == 2, "{}", at[1]);
        let wide = [row(HEAD), row(["上海", "h:1", "100", &"上".repeat(100), "-", "serving", "-"])];
        for line in arranged(&wide, Some(80)) {
            assert!(line.width() <= 80, "{line}");
        }
        assert!(arranged(&wide, Some(80))[1].starts_with("上海  h:1        100     上上"));
        assert_eq!((cut("上海", 4), cut("上海", 3), cut("上海", 2)), ("上海".into(), "上…".into(), "…".into()));
        let free = arranged(&rows, None);
        assert!(free[0].len() < 200 && free[2].chars().count() < 200);
        assert_eq!(free[1].matches('x').count(), 140_000);
    }

    #[test]
    fn a_redrawn_table_fits_its_terminal() {
        let lines: Vec<Text> = (0..10).map(Text::from).collect();
        assert_eq!(fitting(&lines, 0), lines);
        assert_eq!(fitting(&lines, 11), lines);
        assert_eq!(fitting(&lines, 5), ["0", "1", "2", "… and 7 more lines"].map(Text::from));
    }
}
