//! Tables, and the folder that they go to.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    objects::{GIB, MIB},
    options::{Options, LONG, LONGER},
    peers::PeerKind,
    plot,
    race::{Cell, Entry, Paced, Results, PACED_RATE},
    stats::Summary,
};

/// Where the report goes.
pub fn dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-report");
    fs::create_dir_all(&dir).expect("make target/bench-report");
    dir
}

pub fn write(results: &Results, options: &Options) {
    let dir = dir();
    let save = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        println!("written: {}", path.display());
    };
    println!();
    save("report.md", &markdown(results, options));
    save("report.svg", &plot::draw(results));
}

fn markdown(results: &Results, options: &Options) -> String {
    let mut text = String::from("# Peer race\n\n");
    let Results {
        machine,
        load,
        stolen,
        ..
    } = results;
    let set: u64 = options.objects.iter().map(|objects| objects.bytes()).sum();
    let counts: Vec<_> = options
        .objects
        .iter()
        .map(|objects| format!("{} x {}", objects.count, objects.label))
        .collect();
    let place = match results.cores {
        Some(cores) => format!(
            "servers on core {}, the client on core {}",
            cores.server, cores.client
        ),
        None => "one core for servers and client".to_owned(),
    };
    if options.partial {
        text += "Made with options that leave out or shorten something.\n\n";
    }
    write!(
        text,
        "`cargo bench --bench peer_race` on {machine}; load {} before, {} after, {:.1} % of the \
         processors' time taken by the hypervisor; {place}.\n\n\
         Medians of {} interleaved rounds of {} ms a peer, and where more than {} MiB are under \
         way of {} of {} ms; spread: half of the distance between the quartiles, of the median; ratios: medians of each round's, against the mode of \
         nginx that was best here, in responses or in its 99th percentile; busy: the part of its core that the server used. Objects \
         a peer: {} ({} MiB), {}, asked for in a pseudo-random order.\n\n![{}](report.svg)\n",
        load[0],
        load[1],
        stolen * 100.0,
        options.rounds,
        options.turn.as_millis(),
        LONG / MIB,
        options.long_rounds(),
        (options.turn * LONGER as u32).as_millis(),
        counts.join(", "),
        set / MIB,
        if options.reloaded {
            "read back from the disk just before they are raced"
        } else {
            "stored just before they are raced"
        },
        plot::title(results),
    )
    .expect("write to a string");
    for one in &results.cells {
        text += "\n";
        text += &cell(one);
    }
    for one in &results.paced {
        text += "\n";
        text += &paced(one);
    }
    text
}

/// The section of a cell.
pub fn cell(cell: &Cell) -> String {
    let mut text = format!(
        "## {}, {} connection{}\n\n\
         | peer | responses/s | GB/s | spread | / nginx | / old flow | p50, µs | p99, µs | \
         p99 / nginx | busy |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        cell.objects.label,
        cell.connections,
        if cell.connections == 1 { "" } else { "s" },
    );
    let nginx = best_nginx(cell);
    let old_flow = cell.entries.iter().find(|e| e.kind == PeerKind::OldFlow);
    for entry in &cell.entries {
        let Some(rate) = Summary::of(entry.rates.iter().copied()) else {
            continue;
        };
        let busy = entry.cpu.as_secs_f64() / entry.elapsed.as_secs_f64();
        writeln!(
            text,
            "| {} | {} | {:.2} | ±{:.0} % | {} | {} | {} | {} | {} | {:.0} % |",
            entry.kind.key(),
            count(rate.median / cell.objects.len as f64),
            rate.median / 1e9,
            rate.spread() * 100.0,
            ratio(&entry.rates, nginx.map(|nginx| &nginx.rates)),
            ratio(&entry.rates, old_flow.map(|old_flow| &old_flow.rates)),
            count(median(&entry.p50) / 1e3),
            count(median(&entry.p99) / 1e3),
            ratio(&entry.p99, quickest_nginx(cell).map(|nginx| &nginx.p99)),
            busy * 100.0,
        )
        .expect("write to a string");
    }
    text
}

/// The section of what was measured at a fixed rate.
pub fn paced(paced: &Paced) -> String {
    let mut text = format!(
        "## {} at {} MiB/s\n\n\
         | peer | CPU s/GiB | lowest | highest | / best nginx | MiB/s that came |\n\
         |---|---:|---:|---:|---:|---:|\n",
        paced.objects.label,
        PACED_RATE / MIB,
    );
    let summary = |values: &[f64]| Summary::of(values.iter().copied());
    let nginx = paced
        .entries
        .iter()
        .filter(|entry| entry.kind.is_nginx())
        .filter_map(|entry| summary(&entry.cpu))
        .min_by(|a, b| a.median.total_cmp(&b.median));
    for entry in &paced.entries {
        let (Some(cpu), Some(rate)) = (summary(&entry.cpu), summary(&entry.rates)) else {
            continue;
        };
        writeln!(
            text,
            "| {} | {:.3} | {:.3} | {:.3} | {} | {:.0} |",
            entry.kind.key(),
            cpu.median * GIB as f64,
            cpu.min * GIB as f64,
            cpu.max * GIB as f64,
            nginx.map_or_else(String::new, |n| format!("{:.2}", cpu.median / n.median)),
            rate.median / MIB as f64,
        )
        .expect("write to a string");
    }
    text
}

/// The fastest of nginx's modes.
pub fn best_nginx(cell: &Cell) -> Option<&Entry> {
    cell.entries
        .iter()
        .filter(|entry| entry.kind.is_nginx())
        .max_by(|a, b| median(&a.rates).total_cmp(&median(&b.rates)))
}

/// The one of nginx's modes with the lowest 99th percentile.
fn quickest_nginx(cell: &Cell) -> Option<&Entry> {
    cell.entries
        .iter()
        .filter(|entry| entry.kind.is_nginx())
        .min_by(|a, b| median(&a.p99).total_cmp(&median(&b.p99)))
}

pub fn median(rounds: &[f64]) -> f64 {
    Summary::of(rounds.iter().copied()).map_or(0.0, |summary| summary.median)
}

/// The median of the ratios of each round.
pub fn median_ratio(rounds: &[f64], base: &[f64]) -> Option<f64> {
    let ratios = rounds.iter().zip(base).map(|(value, base)| value / base);
    Summary::of(ratios).map(|ratio| ratio.median)
}

fn ratio(rounds: &[f64], base: Option<&Vec<f64>>) -> String {
    base.and_then(|base| median_ratio(rounds, base))
        .map_or_else(String::new, |ratio| format!("{ratio:.2}"))
}

/// Three significant digits, more where there are more before the point.
pub fn count(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
