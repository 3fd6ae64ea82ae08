//! Escaping of foreign text for terminals and logs.
//!
//! A client that may write to the store chooses names, metadata and the values of leaders. Printed without escaping,
//! such text can move the cursor, forge lines of a log, or be displayed as other text. The messages of this crate's
//! errors are escaped already; [`escaped`] is for all other text from the store.

use std::fmt::{self, Write};

/// Returns a display of the value in which each [unprintable](is_unprintable) character is replaced by its number:
/// `\n`, `\u{1b}`.
///
/// Backslashes stay, so escaping twice is the same as once. Text that must be read back exactly belongs in JSON.
///
/// ```
/// use enlist::escape::escaped;
///
/// assert_eq!(escaped("größe 50%").to_string(), "größe 50%");
/// assert_eq!(escaped("up\x1b[1A\nroot").to_string(), r"up\u{1b}[1A\nroot");
/// ```
pub fn escaped<T: fmt::Display>(value: T) -> Escaped<T> {
    Escaped(value)
}

/// Display of a value in escaped form, see [`escaped`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<T>(T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Placeholder for a secret, such as an owner token, in debug output: `…`.
#[derive(Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "it holds nothing")]
pub struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('…')
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| match character {
            '\n' | '\r' | '\t' => write!(self.0, "{}", character.escape_default()),
            hidden if is_unprintable(hidden) => write!(self.0, "{}", hidden.escape_unicode()),
            plain => self.0.write_char(plain),
        })
    }
}

/// Returns `true` for a character that is invisible or changes the display of others: control characters (C0, DEL, C1),
/// line and paragraph separators, and characters that Unicode excludes from display (`Default_Ignorable_Code_Point`),
/// including the marks of bidirectional text and all characters without width. Combining marks are text.
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            u32::from(character),
            0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
            | 0x2028..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
            | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_cannot_be_seen_is_shown_by_number() {
        for (text, shown) in [
            ("", ""),
            ("größe ❤ 漢字 नमस्ते \"quoted\" a\\b", "größe ❤ 漢字 नमस्ते \"quoted\" a\\b"),
            ("\x1b]0;title\x07", r"\u{1b}]0;title\u{7}"),
            ("a\r\nb\tc\0\x7f", r"a\r\nb\tc\u{0}\u{7f}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("\u{202e}gpj.exe\u{2066}\u{200f}", r"\u{202e}gpj.exe\u{2066}\u{200f}"),
            ("a\u{200b}\u{200d}\u{feff}\u{2060}b", r"a\u{200b}\u{200d}\u{feff}\u{2060}b"),
            ("x\u{2028}y\u{2029}\u{85}", r"x\u{2028}y\u{2029}\u{85}"),
            ("\u{e0041}\u{fe0f}\u{ad}\u{3164}", r"\u{e0041}\u{fe0f}\u{ad}\u{3164}"),
        ] {
            assert_eq!(escaped(text).to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_seen_and_is_not_escaped_again(text in any::<String>()) {
            let shown = escaped(&text).to_string();
            prop_assert!(!shown.contains(is_unprintable));
            prop_assert_eq!(escaped(&shown).to_string(), shown);
        }
    }
}
