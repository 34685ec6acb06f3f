//! Throughput of two threads against that of one. See README.md.
#![forbid(unsafe_code)]

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use buttress_benches::{
    case::Case,
    cases::{self, bare},
    pair::Pair,
    runtime,
};

/// Rounds of each case, at least; more as long as the time lasts and there were interruptions.
const ROUNDS: usize = 41;
const LONGEST: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    let filter = env::args().nth(1).unwrap_or_default();
    let mut all: Vec<Case> = vec![cases::named(bare::PLAIN)];
    all.extend(cases::matching(&filter).into_iter().filter(|case| case.on_threads && case.id != bare::PLAIN));

    let runtime = runtime();
    let pair = {
        let _entered = runtime.enter();
        Pair::new(all.iter().map(|case| (case.make)()).collect(), runtime.handle())
    };
    if !pair.is_pinned() {
        eprintln!("This compares two threads on two cores, and there are not two.");
        return ExitCode::from(2);
    }
    let mut series: Vec<Series> = all.iter().map(|_| Series::default()).collect();
    measure(&pair, &mut series);
    print(&all, &mut series);
    ExitCode::SUCCESS
}

/// Rounds of all cases in turn, so that a slow moment of the machine is shared by all.
fn measure(pair: &Pair, series: &mut [Series]) {
    let start = Instant::now();
    while start.elapsed() < LONGEST && series.iter().any(|s| s.ratio.len() < ROUNDS) {
        for (case, series) in series.iter_mut().enumerate() {
            // The two cores need not be equally fast: one thread is the mean of both, each alone.
            let rounds = (pair.alone(0, case), pair.together(case), pair.alone(1, case));
            if let (Some(a), Some(both), Some(b)) = rounds {
                series.add((a + b) / 2.0, both);
            }
        }
    }
}

fn print(cases: &[Case], series: &mut [Series]) {
    println!(
        "{:<52} {:>9} {:>9} {:>6} {:>11} {:>7}",
        "case", "1 thr M/s", "2 thr M/s", "ratio", "of control", "rounds"
    );
    let control = median(&mut series[0].ratio);
    for (n, (case, series)) in cases.iter().zip(series).enumerate() {
        let (one, two, ratio) = (median(&mut series.one), median(&mut series.two), median(&mut series.ratio));
        let id = if n == 0 { format!("{} (control: nothing shared)", case.id) } else { case.id.to_owned() };
        let rounds = series.ratio.len();
        println!("{id:<52} {:>9.2} {:>9.2} {ratio:>6.2} {:>11.2} {rounds:>7}", one / 1e6, two / 1e6, ratio / control);
    }
}

/// Calls per second of the rounds in which nobody was interrupted.
#[derive(Default)]
struct Series {
    one: Vec<f64>,
    two: Vec<f64>,
    ratio: Vec<f64>,
}

impl Series {
    fn add(&mut self, one: f64, two: f64) {
        self.one.push(one);
        self.two.push(two);
        self.ratio.push(two / one);
    }
}

/// NaN of nothing.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
