//! A bar a peer, a group of bars a size.
//!
//! The SVG is written by hand: plotters has no hints on bars, and charming renders with a
//! JavaScript engine.

use std::fmt::Write;

use crate::{
    peers::PeerKind,
    protocol::Protocol,
    race::{Cell, Entry, Results},
    report::{count, fastest_nginx},
    stats::{median, Summary},
};

/// The number of connections that is drawn, where it was measured.
const CONNECTIONS: usize = 16;

const BAR: f64 = 20.0;
const GAP: f64 = 36.0;
const LEFT: f64 = 48.0;
const TOP: f64 = 48.0;
const HEIGHT: f64 = 300.0;
const LEGEND: f64 = 170.0;

/// The bars of a size.
struct Group<'a> {
    cell: &'a Cell,
    bars: Vec<Bar>,
}

struct Bar {
    kind: PeerKind,
    ratio: f64,
    /// Responses a second.
    rate: f64,
}

pub fn title(results: &Results, protocol: Protocol) -> String {
    let cells = drawn(results, protocol);
    let connections = cells.first().map_or(CONNECTIONS, |c| c.connections);
    let base = if cells.iter().any(|c| fastest_nginx(c).is_some()) {
        "the best mode of nginx"
    } else {
        "the first peer"
    };
    let over = protocol.label();
    format!("Hits a second over {over} on {connections} connections, relative to {base}")
}

/// The cells of one protocol and one number of connections.
fn drawn(results: &Results, protocol: Protocol) -> Vec<&Cell> {
    let cells = || results.cells.iter().filter(|c| c.protocol == protocol);
    let of =
        |connections| -> Vec<&Cell> { cells().filter(|c| c.connections == connections).collect() };
    let wanted = of(CONNECTIONS);
    match (wanted.is_empty(), cells().next()) {
        (true, Some(first)) => of(first.connections),
        _ => wanted,
    }
}

fn colour(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::ProxySendfile | PeerKind::ProxyTls => "#c0392b",
        PeerKind::ProxyMinio => "#922b21",
        PeerKind::Build(_) => "#d98880",
        PeerKind::ProxyCopy | PeerKind::ProxyTlsDefaults => "#e59866",
        PeerKind::ProxyLog => "#af601a",
        PeerKind::Nginx(0) => "#1e8449",
        PeerKind::Nginx(1) => "#27ae60",
        PeerKind::Nginx(2) => "#82c99d",
        PeerKind::Nginx(3) => "#b5e0c4",
        PeerKind::Nginx(4) => "#1e8449",
        PeerKind::Nginx(5) => "#27ae60",
        PeerKind::Nginx(_) => "#b5e0c4",
        PeerKind::OldFlow => "#5d6d7e",
        PeerKind::PingoraMemory => "#2e86c1",
        PeerKind::PingoraChunks => "#85c1e9",
        PeerKind::BareSendfile => "#bdc3c7",
    }
}

/// The plot of a protocol as SVG.
pub fn draw(results: &Results, protocol: Protocol) -> String {
    let cells = drawn(results, protocol);
    let groups: Vec<Group> = cells.into_iter().map(Group::new).collect();
    let bars = groups.first().map_or(0, |group| group.bars.len()) as f64;
    let highest = groups
        .iter()
        .flat_map(|group| group.bars.iter().map(|bar| bar.ratio))
        .fold(1.0, f64::max);
    // Whole quarters, with room for the text above a bar.
    let top = ((highest * 1.2) * 4.0).ceil() / 4.0;
    let plot_width = groups.len() as f64 * (bars * BAR + GAP) + GAP;
    let width = LEFT + plot_width + LEGEND;
    let height = TOP + HEIGHT + 40.0;
    let y = |ratio: f64| TOP + HEIGHT * (1.0 - ratio / top);

    let mut svg = Svg::begin(width, height);
    svg.text(LEFT, 24.0, "start", 15, &title(results, protocol));
    let mut mark = 0.0;
    while mark <= top {
        let colour = if mark == 1.0 { "#333" } else { "#ddd" };
        svg.line(LEFT, LEFT + plot_width, y(mark), colour);
        svg.text(LEFT - 6.0, y(mark) + 4.0, "end", 11, &format!("{mark:.2}"));
        mark += 0.25;
    }
    let mut x = LEFT + GAP;
    for Group { cell, bars } in &groups {
        let middle = x + bars.len() as f64 * BAR / 2.0;
        let size = cell.objects.label;
        svg.text(middle, TOP + HEIGHT + 20.0, "middle", 13, size);
        for Bar { kind, ratio, rate } in bars {
            let hint = format!("{}: {} responses/s, {ratio:.2}", kind.key(), count(*rate));
            svg.bar(x, y(*ratio), y(0.0), BAR, colour(*kind), &hint);
            svg.upright(x + BAR / 2.0 + 4.0, y(*ratio) - 4.0, &short(*rate));
            x += BAR;
        }
        x += GAP;
    }
    let legend = groups.first().map_or(&[][..], |group| &group.bars);
    for (index, Bar { kind, .. }) in legend.iter().enumerate() {
        let at = TOP + index as f64 * 20.0;
        let x = LEFT + plot_width + 14.0;
        svg.bar(x, at, at + 12.0, BAR, colour(*kind), kind.key());
        svg.text(x + BAR + 6.0, at + 11.0, "start", 12, kind.key());
    }
    svg.end()
}

/// Responses a second.
fn short(rate: f64) -> String {
    if rate < 10_000.0 {
        format!("{}/s", count(rate))
    } else {
        format!("{}k/s", count(rate / 1000.0))
    }
}

// === impl Group ===

impl<'a> Group<'a> {
    fn new(cell: &'a Cell) -> Self {
        let base = fastest_nginx(cell).or(cell.entries.first());
        let bar = |entry: &Entry| Bar {
            kind: entry.kind,
            ratio: base
                .and_then(|base| Summary::of_ratios(&entry.rates, &base.rates))
                .map_or(0.0, |ratio| ratio.median),
            rate: median(&entry.rates) / cell.objects.len as f64,
        };
        let bars = cell.entries.iter().map(bar).collect();
        Self { cell, bars }
    }
}

/// An image that is being drawn.
pub struct Svg(String);

// === impl Svg ===

impl Svg {
    pub fn begin(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
        ))
    }

    pub fn end(mut self) -> String {
        self.0 += "</svg>\n";
        self.0
    }

    pub fn text(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
        self.push(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" \
             fill=\"#222\">{text}</text>"
        ));
    }

    /// Small, and read from below.
    pub fn upright(&mut self, x: f64, y: f64, text: &str) {
        self.push(&format!(
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" font-size=\"10\" \
             fill=\"#222\">{text}</text>"
        ));
    }

    pub fn line(&mut self, from: f64, to: f64, y: f64, colour: &str) {
        self.push(&format!(
            "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" \
             stroke=\"{colour}\"/>"
        ));
    }

    pub fn bar(&mut self, x: f64, top: f64, bottom: f64, width: f64, colour: &str, hint: &str) {
        self.push(&format!(
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             fill=\"{colour}\"><title>{hint}</title></rect>",
            x + 1.0,
            width - 2.0,
            bottom - top
        ));
    }

    fn push(&mut self, element: &str) {
        writeln!(self.0, "{element}").expect("write to a string");
    }
}
