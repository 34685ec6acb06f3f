//! Counts the instructions of one call, under valgrind's callgrind.
//!
//! The binary runs itself twice, with two numbers of calls, and divides the difference: starting up, building the
//! layer and its first calls are the same in both runs. This needs no client requests, and so no unsafe code.

use std::{
    env,
    io::{self, ErrorKind},
    process::{Command, Output},
};

/// Both are many times the window of every breaker, so that what happens only until it is full cancels out.
const FEW: u64 = 2_000;
const MANY: u64 = 12_000;

#[derive(Debug)]
pub enum Error {
    NotInstalled,
    Failed(String),
}

/// The instructions of one call of this case, and of the loop around it.
pub fn instructions_per_call(id: &str) -> Result<f64, Error> {
    let (few, many) = (total(id, FEW)?, total(id, MANY)?);
    Ok((many as f64 - few as f64) / (MANY - FEW) as f64)
}

/// What `--case ID --calls N` makes of the arguments: the order to run calls, given by [`total`].
pub fn order(args: &[String]) -> Option<(&str, u64)> {
    match args {
        [case, id, calls, n] if case == "--case" && calls == "--calls" => Some((id, n.parse().ok()?)),
        _ => None,
    }
}

fn total(id: &str, calls: u64) -> Result<u64, Error> {
    let output = run(id, calls).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::NotInstalled,
        _ => Error::Failed(e.to_string()),
    })?;
    let text = String::from_utf8_lossy(&output.stderr);
    match collected(&text) {
        Some(n) if output.status.success() => Ok(n),
        _ => Err(Error::Failed(format!("{} of `{id}`:\n{text}", output.status))),
    }
}

fn run(id: &str, calls: u64) -> io::Result<Output> {
    Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--case", id, "--calls", &calls.to_string()])
        .output()
}

/// The total in `==123== Collected : 4567`.
fn collected(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("Collected :")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_total() {
        let text = "==7== \n==7== Events    : Ir\n==7== Collected : 1234567\n==7== \n==7== I   refs:      1,234,567\n";
        assert_eq!(collected(text), Some(1_234_567));
        assert_eq!(collected("==7== Events    : Ir\n"), None);
    }

    #[test]
    fn reads_the_order() {
        let args = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        assert_eq!(order(&args("--case a/b --calls 3")), Some(("a/b", 3)));
        assert_eq!(order(&args("--case a/b --calls x")), None);
        assert_eq!(order(&args("timeout")), None);
    }
}
