//! The results of the interleaved rounds.

use std::time::Duration;

use crate::{
    case::{Case, Way, MIB},
    stats::{median, Summary},
    table::Table,
};

const GIB: f64 = (1024 * MIB) as f64;

/// The results of a variant in all of its turns.
#[derive(Default)]
pub struct Turns {
    pub bytes_per_second: Vec<f64>,
    pub elapsed: Duration,
    pub server_cpu: Duration,
}

/// All variants of a case.
pub struct Compared {
    pub case: Case,
    pub of: Vec<(Way, Turns)>,
}

/// Each way to copy against sendfile.
pub fn print(compared: &[Compared], rounds: usize) {
    println!(
        "\nmedians of {rounds} interleaved rounds; ratio: of each round, its lowest and \
         highest in brackets"
    );
    let mut table = Table::new(&[
        "responses",
        "copied from",
        "copied, GiB/s",
        "sendfile, GiB/s",
        "sendfile/copied",
        "proxy busy, copied",
        "proxy busy, sendfile",
    ]);
    for Compared { case, of } in compared {
        let Some((_, on)) = of.iter().find(|(way, _)| *way == Way::Sendfile) else {
            continue;
        };
        for (way, off) in of {
            let from = match way {
                Way::File => "file",
                Way::Memory => "memory",
                Way::Sendfile | Way::Signed => continue,
            };
            let busy = |turns: &Turns| format!("{:.0} %", turns.busy() * 100.0);
            table.row(&[
                case.name(),
                from.to_owned(),
                format!("{:.3}", off.median() / GIB),
                format!("{:.3}", on.median() / GIB),
                on.ratio_to(off),
                busy(off),
                busy(on),
            ]);
        }
    }
    print!("{table}");
    print_signed(compared);
}

/// Signed requests against those that are not.
fn print_signed(compared: &[Compared]) {
    let mut table = Table::new(&[
        "responses",
        "unsigned, a second",
        "signed, a second",
        "signed/unsigned",
    ]);
    for Compared { case, of } in compared {
        let find = |way| Some(&of.iter().find(|(of, _)| *of == way)?.1);
        let Some((unsigned, signed)) = find(Way::Sendfile).zip(find(Way::Signed)) else {
            continue;
        };
        let len = case.body_len() as f64;
        table.row(&[
            case.name(),
            format!("{:.0}", unsigned.median() / len),
            format!("{:.0}", signed.median() / len),
            signed.ratio_to(unsigned),
        ]);
    }
    print!("\n{table}");
}

// === impl Turns ===

impl Turns {
    fn median(&self) -> f64 {
        median(&self.bytes_per_second)
    }

    fn ratio_to(&self, base: &Self) -> String {
        Summary::of_ratios(&self.bytes_per_second, &base.bytes_per_second)
            .map_or_else(String::new, |ratio| ratio.to_string())
    }

    /// The part of its core's time that the proxy used.
    fn busy(&self) -> f64 {
        self.server_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}
