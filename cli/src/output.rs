//! What the user reads on the terminal.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is this module's purpose")]

/// A line on standard output: what was asked for.
pub(crate) fn line(text: impl std::fmt::Display) {
    use std::io::Write;
    // A reader that has gone away (`| head`) is no error of ours.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line on standard error: progress and remarks.
pub(crate) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// An error with its causes, each once.
pub(crate) fn error(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    eprintln!("error: {text}");
}

/// Rows under a header, columns as wide as their widest cell, as `kubectl` prints them.
pub(crate) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(header).chain(rows.iter().map(Vec::as_slice)) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows =
            [vec!["web".to_owned(), "1/1".to_owned()], vec!["a-longer-name".to_owned(), "0/1".to_owned()]];
        let text = super::table(&["NAME".into(), "READY".into()], &rows);
        assert_eq!(text, "NAME            READY\nweb             1/1\na-longer-name   0/1\n");
    }
}
