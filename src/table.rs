//! Columns of text, as kubectl prints them: two spaces between, no trailing spaces.

use std::fmt;

const GAP: usize = 2;

/// A table under construction. A row may be shorter than the header; its last cell then runs on.
pub(crate) struct Table {
    columns: usize,
    gap: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with that header.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self::with_gap(header, GAP)
    }

    /// The same with so many spaces between columns.
    pub(crate) fn with_gap(header: &[&str], gap: usize) -> Self {
        Self { columns: header.len(), gap, rows: vec![header.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = vec![0; self.columns];
        for row in &self.rows {
            // The last cell of a row needs no width: nothing stands after it.
            for (width, cell) in widths.iter_mut().zip(&row[..row.len().saturating_sub(1)]) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}{:gap$}", "", width = *width, gap = self.gap));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_short_rows_run_on() {
        let mut table = Table::new(&["NAME", "STATE", "AGE"]);
        table.row(vec!["a-long-name".to_owned(), "up".to_owned(), "5s".to_owned()]);
        table.row(vec!["b".to_owned(), "down: because of a long story".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME         STATE  AGE\na-long-name  up     5s\nb            down: because of a long story\n"
        );
    }
}
