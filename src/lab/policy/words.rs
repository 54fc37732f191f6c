//! The words of a line, one after the other: how logs and workloads are read.

use core::fmt;
use core::str::FromStr;

/// What is left of a line, without the spaces around it.
#[derive(Clone, Debug)]
pub struct Words<'a>(&'a str);

/// What is wrong with a line's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong<'a> {
    /// There should be this, and there is that.
    Expected(&'static str, &'a str),
    /// It ends where there should be this.
    Ends(&'static str),
    /// There is more, from here on.
    More(&'a str),
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected(what, found) => write!(f, "there is `{found}` where {what} should be"),
            Self::Ends(what) => write!(f, "it ends where {what} should be"),
            Self::More(rest) => write!(f, "`{rest}` is more than belongs here"),
        }
    }
}

impl core::error::Error for Wrong<'_> {}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let end = self.0.bytes().position(|byte| byte.is_ascii_whitespace()).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest.trim_ascii_start();
        (!word.is_empty()).then_some(word)
    }
}

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Self {
        Self(line.trim_ascii())
    }

    /// The next one, which stays there.
    pub fn peek(&self) -> Option<&'a str> {
        self.clone().next()
    }

    /// Takes the next one if it is this; whether it was.
    pub fn next_if(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        if found {
            self.next();
        }
        found
    }

    /// All that is left, at once.
    pub fn rest(&mut self) -> &'a str {
        core::mem::take(&mut self.0)
    }

    /// # Errors
    ///
    /// If there is none where `what` should be, here as below.
    pub fn word(&mut self, what: &'static str) -> Result<&'a str, Wrong<'a>> {
        self.next().ok_or(Wrong::Ends(what))
    }

    /// What comes behind `name` in the next word.
    pub fn behind(&mut self, name: &str, what: &'static str) -> Result<&'a str, Wrong<'a>> {
        let word = self.word(what)?;
        word.strip_prefix(name).ok_or(Wrong::Expected(what, word))
    }

    pub fn number<T: FromStr>(&mut self, what: &'static str) -> Result<T, Wrong<'a>> {
        self.number_behind("", what)
    }

    pub fn number_behind<T: FromStr>(&mut self, name: &str, what: &'static str) -> Result<T, Wrong<'a>> {
        let digits = self.behind(name, what)?;
        digits.parse().map_err(|_| Wrong::Expected(what, digits))
    }

    /// `value`, if this is all.
    pub fn end<T>(mut self, value: T) -> Result<T, Wrong<'a>> {
        self.next().map_or(Ok(value), |word| Err(Wrong::More(word)))
    }
}
