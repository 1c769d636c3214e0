//! Tables, and the folder that they go to.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cores::describe,
    handshakes::Handshakes,
    objects::{GIB, MIB},
    options::{Options, LONG, LONGER},
    peers::PeerKind,
    plot,
    protocol::Protocol,
    race::{Cell, Entry, Paced, Results, PACED_RATE},
    stats::{median, Summary},
    table::Table,
};

/// The folder of the report.
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
    for protocol in options.protocols() {
        save(protocol.plot(), &plot::draw(results, protocol));
    }
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
    let place = describe(results.cores, "servers");
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
         a peer: {} ({} MiB), {}, requested {}. Open files at most: {}.\n\n",
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
        match options.zipf {
            Some(exponent) => format!("by Zipf's law with the exponent {exponent}"),
            None => "in a pseudo-random order".to_owned(),
        },
        options.open_files.number(),
    )
    .expect("write to a string");
    for protocol in options.protocols() {
        let title = plot::title(results, protocol);
        writeln!(text, "![{title}]({})", protocol.plot()).expect("write to a string");
    }
    for one in &results.cells {
        text += "\n";
        text += &cell(one);
    }
    for one in &results.paced {
        text += "\n";
        text += &paced(one);
    }
    for one in &results.handshakes {
        text += "\n";
        text += &handshakes(one);
    }
    text
}

/// The section of a cell.
pub fn cell(cell: &Cell) -> String {
    let old_flow = cell.entries.iter().find(|e| e.kind == PeerKind::OldFlow);
    let mut head = vec!["peer", "responses/s", "GB/s", "spread", "/ nginx"];
    head.extend(old_flow.map(|_| "/ old flow"));
    head.extend(["p50, µs", "p99, µs", "p99 / nginx", "busy"]);
    head.extend(["CPU s/GiB", "CPU / nginx", "in the kernel"]);
    let mut table = Table::new(&head);
    for entry in &cell.entries {
        let Some(rate) = Summary::of(entry.rates.iter().copied()) else {
            continue;
        };
        let busy = entry.cpu.seconds() / entry.elapsed.as_secs_f64();
        let nginx = |value: fn(&Entry) -> f64| best_nginx(cell, entry.kind.is_default(), value);
        let fastest = nginx(|nginx| -median(&nginx.rates));
        let quickest = nginx(|nginx| median(&nginx.p99));
        let thriftiest = nginx(|nginx| median(&nginx.cpu_rates));
        let mut row = vec![
            entry.kind.key().to_owned(),
            count(rate.median / cell.objects.len as f64),
            format!("{:.2}", rate.median / 1e9),
            format!("±{:.0} %", rate.spread() * 100.0),
            ratio(&entry.rates, fastest.map(|nginx| &nginx.rates)),
        ];
        row.extend(old_flow.map(|old_flow| ratio(&entry.rates, Some(&old_flow.rates))));
        row.extend([
            count(median(&entry.p50) / 1e3),
            count(median(&entry.p99) / 1e3),
            ratio(&entry.p99, quickest.map(|nginx| &nginx.p99)),
            format!("{:.0} %", busy * 100.0),
            format!("{:.3}", median(&entry.cpu_rates) * GIB as f64),
            ratio(&entry.cpu_rates, thriftiest.map(|nginx| &nginx.cpu_rates)),
            format!("{:.0} %", entry.cpu.kernel_part() * 100.0),
        ]);
        table.row(&row);
    }
    format!("## {}\n\n{table}", heading(cell))
}

fn heading(cell: &Cell) -> String {
    let plural = if cell.connections == 1 { "" } else { "s" };
    let (label, connections) = (cell.objects.label, cell.connections);
    let connections = format!("{label}, {connections} connection{plural}");
    let over = cell.protocol.label();
    match (cell.protocol, cell.protocol.streams()) {
        (Protocol::Http, _) => connections,
        (_, 1) => format!("{over}, {connections}"),
        (_, streams) => format!("{over}, {connections} of {streams} streams"),
    }
}

/// The section of what was measured at a fixed rate.
pub fn paced(paced: &Paced) -> String {
    let mut table = Table::new(&[
        "peer",
        "CPU s/GiB",
        "lowest",
        "highest",
        "/ best nginx",
        "MiB/s that came",
    ]);
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
        table.row(&[
            entry.kind.key().to_owned(),
            format!("{:.3}", cpu.median * GIB as f64),
            format!("{:.3}", cpu.min * GIB as f64),
            format!("{:.3}", cpu.max * GIB as f64),
            nginx.map_or_else(String::new, |n| format!("{:.2}", cpu.median / n.median)),
            format!("{:.0}", rate.median / MIB as f64),
        ]);
    }
    let rate = PACED_RATE / MIB;
    format!("## {} at {rate} MiB/s\n\n{table}", paced.objects.label)
}

/// The section of one kind of handshakes.
pub fn handshakes(handshakes: &Handshakes) -> String {
    let mut table = Table::new(&[
        "peer",
        "handshakes/s",
        "spread",
        "/ nginx",
        "busy",
        "CPU µs each",
        "CPU / nginx",
        "in the kernel",
    ]);
    let nginx = handshakes.entries.iter().find(|e| e.kind.is_nginx());
    for entry in &handshakes.entries {
        let Some(rate) = Summary::of(entry.rates.iter().copied()) else {
            continue;
        };
        table.row(&[
            entry.kind.key().to_owned(),
            count(rate.median),
            format!("±{:.0} %", rate.spread() * 100.0),
            ratio(&entry.rates, nginx.map(|nginx| &nginx.rates)),
            format!(
                "{:.0} %",
                entry.cpu.seconds() / entry.elapsed.as_secs_f64() * 100.0
            ),
            count(median(&entry.cpu_each) * 1e6),
            ratio(&entry.cpu_each, nginx.map(|nginx| &nginx.cpu_each)),
            format!("{:.0} %", entry.cpu.kernel_part() * 100.0),
        ]);
    }
    format!("## {}\n\n{table}", handshakes.label())
}

/// The one of nginx's modes that has the least of something: of those at their defaults, or
/// of the others.
fn best_nginx(cell: &Cell, is_default: bool, value: impl Fn(&Entry) -> f64) -> Option<&Entry> {
    cell.entries
        .iter()
        .filter(|entry| entry.kind.is_nginx() && entry.kind.is_default() == is_default)
        .min_by(|a, b| value(a).total_cmp(&value(b)))
}

/// The fastest of nginx's modes that are not at their defaults.
pub fn fastest_nginx(cell: &Cell) -> Option<&Entry> {
    best_nginx(cell, false, |nginx| -median(&nginx.rates))
}

pub fn ratio(rounds: &[f64], base: Option<&Vec<f64>>) -> String {
    base.and_then(|base| Summary::of_ratios(rounds, base))
        .map_or_else(String::new, |ratio| format!("{:.2}", ratio.median))
}

/// Three significant digits, more where there are more before the point.
pub fn count(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
