//! Tables of text, fitted to the terminal.

use std::fmt;

use console::{Term, measure_text_width};

/// Between two columns.
const GAP: usize = 2;
/// Before what continues a row.
const INDENT: usize = 4;
/// The last column, often a sentence, goes to its own line if it has less room than this and needs more.
const MIN_LAST: usize = 30;

/// Rows below headings; each column is as wide as its widest cell.
///
/// On a terminal that is too narrow, a row continues on further lines, broken at the same columns as all others. Elsewhere a
/// row is one line, for `grep`.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// The text for a terminal of so many columns, or without a limit.
    fn text(&self, room: Option<usize>) -> String {
        let room = room.unwrap_or(usize::MAX);
        let columns = self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| measure_text_width(&row[column])).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let last = self.rows.iter().filter_map(|row| row.last());
        let longest_word =
            last.flat_map(|cell| cell.split([' ', '\n'])).map(measure_text_width).max().unwrap_or(0);
        // The columns of each line.
        let mut lines: Vec<Vec<usize>> = vec![Vec::new()];
        let mut at = 0_usize;
        for (column, &width) in widths.iter().enumerate() {
            let needed = if column + 1 == columns { width.min(longest_word.max(MIN_LAST)) } else { width };
            if at > 0 && at.saturating_add(needed) > room {
                lines.push(Vec::new());
                at = INDENT;
            }
            lines.last_mut().expect("it begins with one").push(column);
            at += width + GAP;
        }
        let mut text = String::new();
        for row in &self.rows {
            for (place, columns) in lines.iter().enumerate() {
                let mut line = " ".repeat(if place == 0 { 0 } else { INDENT });
                for &column in columns {
                    let (cell, start) = (&row[column], measure_text_width(&line));
                    if column + 1 == row.len() {
                        line += &wrap(cell, start, room);
                    } else {
                        let pad = widths[column] + GAP - measure_text_width(cell);
                        line = line + cell + &" ".repeat(pad);
                    }
                }
                if place == 0 || !line.trim().is_empty() {
                    text += line.trim_end();
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// A text that begins at a column, broken between words; what follows is indented to that column.
fn wrap(text: &str, start: usize, room: usize) -> String {
    let mut out = String::new();
    let mut at = start;
    for (place, word) in text.split([' ', '\n']).enumerate() {
        let width = measure_text_width(word);
        if place > 0 && at.saturating_add(1 + width) > room {
            out = out + "\n" + &" ".repeat(start);
            at = start;
        } else if place > 0 {
            out.push(' ');
            at += 1;
        }
        out += word;
        at += width;
    }
    out
}

/// The columns of a terminal; `None` where the stream is none.
fn columns(terminal: &Term) -> Option<usize> {
    let size = terminal.is_term().then(|| terminal.size_checked()).flatten();
    size.map(|(_, columns)| columns.into())
}

/// Lines, each broken between words to fit the terminal; elsewhere they stay as they are, for `grep`.
pub fn line(text: &str) -> String {
    fitted(text, columns(&Term::stdout())) + "\n"
}

/// The same for standard error, without the last line end.
pub fn error_line(text: &str) -> String {
    fitted(text, columns(&Term::stderr()))
}

fn fitted(text: &str, room: Option<usize>) -> String {
    let Some(room) = room else { return text.to_owned() };
    let fit = |line: &str| match measure_text_width(line) > room {
        true => wrap(line, 0, room - INDENT.min(room)).replace('\n', &format!("\n{}", " ".repeat(INDENT))),
        false => line.to_owned(),
    };
    text.split('\n').map(fit).collect::<Vec<_>>().join("\n")
}

/// A line that begins with `head`, then a text that is broken to fit the terminal, or 100 columns elsewhere.
pub fn paragraph(head: &str, text: &str) -> String {
    let wrapped = wrap(text, measure_text_width(head), columns(&Term::stdout()).unwrap_or(100));
    format!("{head}{wrapped}\n")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(columns(&Term::stdout())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_the_terminal() {
        let mut table = Table::new(&["stage", "state", "reason"]);
        table.row(["one".into(), "run".into(), "a file changed, and so did a number".into()]);
        table.row(["twelve".into(), "cached".into(), String::new()]);
        let wide = "\
stage   state   reason
one     run     a file changed, and so did a number
twelve  cached
";
        assert_eq!(table.text(None), wide);
        assert_eq!(table.text(Some(51)), wide);
        let wrapped = "\
stage   state   reason
one     run     a file changed, and so did a
                number
twelve  cached
";
        assert_eq!(table.text(Some(48)), wrapped);
        let own_line = "\
stage   state
    reason
one     run
    a file changed,
    and so did a
    number
twelve  cached
";
        assert_eq!(table.text(Some(20)), own_line);
        // A name in Chinese takes two columns for each character.
        let mut table = Table::new(&["stage", "state"]);
        table.row(["苹果".into(), "run".into()]);
        assert_eq!(table.text(None), "stage  state\n苹果   run\n");
    }
}
