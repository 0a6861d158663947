//! The output of the story: a redrawn screen, or lines.

use std::collections::VecDeque;
use std::io::{Write, stdout};
use std::time::Instant;

/// How many verdicts a screen keeps below the table.
const VERDICTS_MAX: usize = 8;

/// The terminal's alternate screen: the previous screen returns after the demo.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const CLEAR: &str = "\x1b[H\x1b[J";

pub(crate) struct Screen {
    begin: Instant,
    page: Option<Page>,
}

/// The content of a terminal.
#[derive(Default)]
struct Page {
    chapter: String,
    now: String,
    table: String,
    verdicts: VecDeque<String>,
}

impl Screen {
    /// For a pipe, a file, a log.
    pub(crate) fn lines() -> Screen {
        Screen {
            begin: Instant::now(),
            page: None,
        }
    }

    pub(crate) fn terminal() -> Screen {
        print!("{ENTER}");
        Screen {
            begin: Instant::now(),
            page: Some(Page::default()),
        }
    }

    /// Begins a new chapter of the story.
    pub(crate) fn chapter(&mut self, title: &str) {
        match &mut self.page {
            None => println!("\n== {title}"),
            Some(page) => page.chapter = title.to_owned(),
        }
        self.draw();
    }

    /// Shows the current event.
    pub(crate) fn say(&mut self, text: &str) {
        match &mut self.page {
            None => println!("{:5.1} s  {text}", self.begin.elapsed().as_secs_f64()),
            Some(page) => page.now = text.to_owned(),
        }
        self.draw();
    }

    /// Shows whether an expectation is met.
    pub(crate) fn verdict(&mut self, passed: bool, text: &str) {
        let word = if passed { "PASS" } else { "FAIL" };
        let line = format!("{word}  {text}");
        match &mut self.page {
            None => println!("{line}"),
            Some(page) => {
                page.verdicts.push_back(line);
                if page.verdicts.len() > VERDICTS_MAX {
                    page.verdicts.pop_front();
                }
            }
        }
        self.draw();
    }

    /// The current table: a terminal shows it at once.
    pub(crate) fn refresh(&mut self, table: impl FnOnce() -> String) {
        if let Some(page) = &mut self.page {
            page.table = table();
        }
        self.draw();
    }

    /// The table at the end of a chapter: without a terminal it is printed only now.
    pub(crate) fn conclude(&mut self, table: impl FnOnce() -> String) {
        match &mut self.page {
            None => println!("{}", table()),
            Some(page) => page.table = table(),
        }
        self.draw();
    }

    fn draw(&self) {
        if let Some(page) = &self.page {
            print!("{CLEAR}\x1b[1m{}\x1b[0m\n{}\n", page.chapter, page.table);
            println!("now: {}   (Ctrl-C ends)", page.now);
            page.verdicts.iter().for_each(|line| println!("{line}"));
        }
        // A closed pipe must not leave children behind.
        let _ = stdout().flush();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.page.is_some() {
            print!("{LEAVE}");
            let _ = stdout().flush();
        }
    }
}
