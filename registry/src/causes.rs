//! Errors with their causes: the outermost alone often says only "transport error".

use std::error::Error;
use std::iter::successors;

/// An error, then its cause, then the cause of that.
pub fn chain<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source())
}

/// An error with its causes in one line.
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut causes = chain(error).map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    // Many errors repeat the text of their cause.
    causes.fold(first, |line, cause| match line.contains(&cause) {
        true => line,
        false => format!("{line}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as _)
        }
    }

    #[test]
    fn causes_stand_once_each() {
        let refused = Layer("connection refused", None);
        let connect = Layer("connect: connection refused", Some(Box::new(refused)));
        let outermost = Layer("transport error", Some(Box::new(connect)));
        assert_eq!(
            in_one_line(&outermost),
            "transport error: connect: connection refused"
        );
        assert_eq!(chain(&outermost).count(), 3);
    }
}
