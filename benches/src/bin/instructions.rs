//! Instructions and allocations per call. See README.md.
#![forbid(unsafe_code)]

use std::{collections::HashMap, env, hint::black_box, process::ExitCode};

use buttress_benches::{
    callgrind::{self, Error},
    case::{Case, Judge},
    cases, runtime,
};

fn main() -> ExitCode {
    let runtime = runtime();
    let _entered = runtime.enter();
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some((id, calls)) = callgrind::order(&args) {
        run(&cases::named(id), calls);
        return ExitCode::SUCCESS;
    }
    let cases = cases::matching(args.first().map_or("", String::as_str));
    if cases.is_empty() {
        eprintln!("No case has that in its name.");
        return ExitCode::from(2);
    }
    match table(&cases) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::NotInstalled) => {
            eprintln!("This counts instructions with valgrind, which is not installed: apt-get install valgrind");
            ExitCode::from(2)
        }
        Err(Error::Failed(why)) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// What runs under valgrind.
///
/// The counting allocator is linked into this binary, so it is there too. Where nothing is allocated, as on our
/// admitted path, it costs nothing. Counting is switched off here; what is left of it is some 55 instructions for an
/// allocation and its release.
fn run(case: &Case, calls: u64) {
    allocation_counter::opt_out(|| {
        let mut call = (case.make)()();
        for _ in 0..calls {
            black_box(call());
        }
    });
}

fn table(cases: &[Case]) -> Result<(), Error> {
    let mut meter = Meter::default();
    println!("{:<52} {:>8} {:>8} {:>7}   held against", "case", "net", "gross", "allocs");
    for case in cases {
        let (net, gross) = (meter.net(case)?, meter.gross(case.id)?);
        let allocations = allocations(case).map_err(Error::Failed)?;
        let verdict = meter.verdict(case)?;
        let line = format!("{:<52} {net:>8.1} {gross:>8.1} {allocations:>7}   {verdict}", case.id);
        println!("{}", line.trim_end());
    }
    Ok(())
}

/// Measures each case once, whoever asks for it.
#[derive(Default)]
struct Meter {
    gross: HashMap<&'static str, f64>,
}

impl Meter {
    fn gross(&mut self, id: &'static str) -> Result<f64, Error> {
        if let Some(known) = self.gross.get(id) {
            return Ok(*known);
        }
        let measured = callgrind::instructions_per_call(id)?;
        self.gross.insert(id, measured);
        Ok(measured)
    }

    fn net(&mut self, case: &Case) -> Result<f64, Error> {
        Ok(self.gross(case.id)? - self.gross(case.bare)?)
    }

    fn verdict(&mut self, case: &Case) -> Result<String, Error> {
        let net = self.net(case)?;
        let most = match case.judge {
            Judge::Nothing => return Ok(String::new()),
            Judge::RatioTo(other) => return Ok(format!("{:.2} x {other}", net / self.net(&cases::named(other))?)),
            Judge::AtMost(most) => most,
            Judge::AtMostOf { case: other, factor, plus } => factor * self.net(&cases::named(other))? + plus,
        };
        // As it is printed. The two runs whose difference this is do not start up alike to the instruction (one reads a
        // longer number), and that is divided among all calls: some thousandths of one.
        let printed = (net * 10.0).round() / 10.0;
        let mark = if printed <= most { "ok" } else { "ABOVE" };
        Ok(format!("target {most:.0}: {mark}"))
    }
}

/// Allocations per call, once it is warm. In this process, not under valgrind.
fn allocations(case: &Case) -> Result<String, String> {
    const CALLS: u32 = 1_000;
    let mut call = (case.make)()();
    let mut as_it_should = true;
    let mut run = || (0..CALLS).for_each(|_| as_it_should &= call() == case.answers_ok);
    run();
    let counted = allocation_counter::measure(run).count_total;
    if !as_it_should {
        return Err(format!("`{}` did not answer as it should, so its figures would mean nothing", case.id));
    }
    // Rounded: what an amortised buffer allocates now and then is not the price of a call.
    let per_call = format!("{:.2}", counted as f64 / f64::from(CALLS));
    Ok(per_call.trim_end_matches('0').trim_end_matches('.').to_owned())
}
