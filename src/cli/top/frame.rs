//! The lines of a frame. A terminal shows as many as it has room for; as text, all are written.
//!
//! A section is as long as what it lists. Where the rows of a terminal do not suffice, sections are shortened, the
//! last one first, and say how much they leave out.

use std::time::Instant;

use pingora_sendfile::proxy::status::{bytes, period, Cache, Origin, Status, TopKey};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use ratatui::Frame;

use super::super::status::percent;
use super::rates::{Rate, Rates};
use super::text::{bytes_per_second, count, elided, joined, per_second, share, wrapped};
use super::view::{Seen, View};

/// The width from which on two tables stand side by side.
const WIDE: usize = 80;

/// The gap between two tables that stand side by side.
const GAP: usize = 2;

/// The width of the state of a directory or an origin.
const STATE: usize = 6;

/// The number of rows from which on the last one names the keys.
const HIGH: usize = 8;

const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const HEAD: Style = Style::new().add_modifier(Modifier::REVERSED);
const GOOD: Style = Style::new().fg(Color::Green);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);

/// Lines that belong together.
struct Section {
    lines: Vec<Line<'static>>,
    /// The number of lines before it was shortened.
    all: usize,
    /// The number of lines to which it is shortened first.
    fair: usize,
    /// The number of lines to which it is shortened if the rows still do not suffice.
    least: usize,
    /// An empty line precedes it, if there is room.
    has_gap: bool,
}

/// Draws a frame.
pub fn draw(frame: &mut Frame, view: &View, now: Instant) {
    let area = frame.area();
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let has_foot = height >= HIGH;
    let rows = height - usize::from(has_foot);
    let mut lines = fit(sections(view, now, Some(width)), rows);
    lines.truncate(rows);
    if has_foot {
        lines.resize(rows, Line::default());
        lines.push(foot(view));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// A frame as text, however long and wide.
pub fn text(view: &View, now: Instant) -> String {
    let lines = fit(sections(view, now, None), usize::MAX);
    let lines: Vec<_> = lines
        .iter()
        .map(|line| line.to_string().trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// All sections, of at most `width` columns.
fn sections(view: &View, now: Instant, width: Option<usize>) -> Vec<Section> {
    let trouble = view.trouble(now);
    let head = head(view, trouble.is_some(), width);
    let mut sections = vec![Section::whole(vec![head], false)];
    if let Some(trouble) = &trouble {
        sections.push(Section::whole(paragraph(trouble, width, BAD), false));
    }
    let Some(seen) = &view.seen else {
        return sections;
    };
    if let Some(notice) = view.notice(now) {
        sections.push(Section::whole(paragraph(notice, width, TITLE), false));
    }
    let status = &seen.status;
    let begin = sections.len();
    sections.push(Section::list(warnings(status, width), 5, 3, false));
    let (requests, sent) = (requests(seen), sent(seen));
    match width {
        Some(..WIDE) => {
            sections.push(Section::whole(requests, true));
            sections.push(Section::whole(sent, true));
        }
        _ => sections.push(Section::whole(side_by_side(requests, sent), true)),
    }
    let cache = cache(status.cache.as_ref(), width);
    sections.push(Section::list(cache, 5, 3, true));
    let origins = origins(&status.origins, width);
    sections.push(Section::list(origins, 5, 3, true));
    let keys = keys(&status.top_keys, width);
    sections.push(Section::list(keys, 8, 4, true));
    if trouble.is_some() {
        let old = sections[begin..].iter_mut();
        for line in old.flat_map(|section| &mut section.lines) {
            *line = Line::styled(line.to_string(), FAINT);
        }
    }
    sections
}

/// The lines of sections, shortened if there are more than `rows`.
fn fit(mut sections: Vec<Section>, rows: usize) -> Vec<Line<'static>> {
    sections.retain(|section| !section.lines.is_empty());
    let length = |section: &Section| section.lines.len() + usize::from(section.has_gap);
    let needed: usize = sections.iter().map(length).sum();
    let mut excess = needed.saturating_sub(rows);
    for section in sections.iter_mut().rev() {
        excess -= section.shorten(excess, section.fair);
    }
    for section in sections.iter_mut().rev() {
        if excess > 0 && section.has_gap {
            section.has_gap = false;
            excess -= 1;
        }
    }
    for section in sections.iter_mut().rev() {
        excess -= section.shorten(excess, section.least);
    }
    let lines = sections.into_iter().flat_map(|section| {
        let gap = section.has_gap.then(Line::default);
        gap.into_iter().chain(section.lines)
    });
    lines.collect()
}

// === impl Section ===

impl Section {
    /// Lines of which all are needed.
    fn whole(lines: Vec<Line<'static>>, has_gap: bool) -> Section {
        let all = lines.len();
        Section {
            lines,
            all,
            fair: all,
            least: all,
            has_gap,
        }
    }

    /// Lines of a list.
    fn list(lines: Vec<Line<'static>>, fair: usize, least: usize, has_gap: bool) -> Section {
        Section {
            fair,
            least,
            ..Section::whole(lines, has_gap)
        }
    }

    /// Shortens it by `excess` lines, but not below `least`. Returns by how many it was.
    fn shorten(&mut self, excess: usize, least: usize) -> usize {
        let shown = self.lines.len();
        let stay = shown.saturating_sub(excess).max(least);
        if stay >= shown {
            return 0;
        }
        self.lines.truncate(stay - 1);
        let more = format!("… and {} more", self.all - (stay - 1));
        self.lines.push(Line::styled(more, FAINT));
        shown - stay
    }
}

// --- the parts of a frame ---

/// The first line: the process and its state. `is_old`: that is not known now.
fn head(view: &View, is_old: bool, width: Option<usize>) -> Line<'static> {
    let place = &view.place;
    let parts = match &view.seen {
        None => vec![format!("s3-proxy at {place}"), "asking".to_owned()],
        Some(Seen { status, .. }) => vec![
            match status.ready {
                _ if is_old => "s3-proxy NO ANSWER".to_owned(),
                true => "s3-proxy ready".to_owned(),
                false => "s3-proxy NOT READY".to_owned(),
            },
            format!("up {}", period(status.uptime_seconds)),
            match status.connections {
                1 => "1 connection".to_owned(),
                n => format!("{} connections", count(n)),
            },
            format!("process {} at {place}", status.pid),
            format!("version {}", status.version),
        ],
    };
    match width {
        Some(width) => Line::styled(format!("{:width$}", joined(parts, width)), HEAD),
        None => Line::raw(joined(parts, usize::MAX)),
    }
}

/// The last line.
fn foot(view: &View) -> Line<'static> {
    let seconds = view.interval.as_secs_f64();
    Line::styled(format!("every {seconds} s, q to leave"), FAINT)
}

/// The reasons of a proxy that is not ready, and its warnings.
fn warnings(status: &Status, width: Option<usize>) -> Vec<Line<'static>> {
    let unready = match status.ready {
        true => None,
        false => Some(format!("Not ready: {}", status.unready.join("; "))),
    };
    let all = unready.iter().chain(&status.warnings);
    all.flat_map(|text| paragraph(text, width, BAD)).collect()
}

fn requests(seen: &Seen) -> Vec<Line<'static>> {
    let Seen { status, rates, .. } = seen;
    let requests = &status.requests;
    let row = |name: &str, now: String, total: String| format!("{name:<12}{now:>11}{total:>14}");
    let counted = |name, rate: Rate, total| row(name, per_second(rate), count(total));
    let troubled = |name, rate: Rate, total| {
        let is_troubled = rate.is_some_and(|rate| rate > 0.0);
        let style = if is_troubled { BAD } else { Style::new() };
        Line::styled(counted(name, rate, total), style)
    };
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), percent);
    let title = row("Requests", "now".into(), "since start".into());
    vec![
        Line::styled(title, TITLE),
        Line::raw(row(
            "hit ratio",
            ratio(rates.hit_ratio),
            ratio(requests.hit_ratio),
        )),
        Line::raw(counted("hits", rates.hits, requests.hits)),
        Line::raw(counted("misses", rates.misses, requests.misses)),
        Line::raw(counted("to origins", rates.origin, requests.origin)),
        Line::raw(counted("stale", rates.stale, requests.stale)),
        troubled("errors", rates.errors, requests.errors),
    ]
}

fn sent(Seen { status, rates, .. }: &Seen) -> Vec<Line<'static>> {
    let sent = &status.bytes;
    let row = |way: &str, now: String, total: String, share: String| {
        format!("{way:<12}{now:>11}{total:>10}{share:>8}")
    };
    let Rates {
        sendfile,
        ktls,
        memory,
        copied,
        total,
        ..
    } = rates;
    let ways = [
        ("sendfile", sendfile, sent.sendfile),
        ("kernel TLS", ktls, sent.ktls),
        ("memory", memory, sent.memory),
        ("copied", copied, sent.copied),
        ("all", total, sent.total),
    ];
    let title = row("Sent by", "now".into(), "total".into(), "share".into());
    let rows = ways.map(|(way, rate, count)| {
        let part = match sent.total {
            0 => "-".to_owned(),
            total => share(count, total),
        };
        Line::raw(row(way, bytes_per_second(*rate), bytes(count), part))
    });
    [Line::styled(title, TITLE)]
        .into_iter()
        .chain(rows)
        .collect()
}

fn cache(cache: Option<&Cache>, width: Option<usize>) -> Vec<Line<'static>> {
    let title = Span::styled("Cache       ", TITLE);
    let Some(cache) = cache else {
        return vec![Line::from(vec![
            title,
            "none: cache.disk is not enabled".into(),
        ])];
    };
    let fills = match cache.fills_in_flight {
        1 => "1 fill".to_owned(),
        n => format!("{} fills", count(n)),
    };
    let used = share(cache.size_bytes, cache.max_size_bytes);
    let listed = match cache.load_progress {
        ..1.0 => format!(", {} listed", percent(cache.load_progress)),
        _ => String::new(),
    };
    let summary = format!("{fills} in flight, {used} full{listed}");
    let row = |entries: &str, used: &str, limit: &str, free: &str| {
        format!("{entries:>13}{used:>10}{limit:>10}{free:>10}  ")
    };
    let columns = row("entries", "used", "limit", "disk free");
    let mut lines = vec![
        Line::from(vec![title, summary.into()]),
        Line::styled(format!("{:<STATE$}{columns}directory", "state"), FAINT),
    ];
    for folder in down_first(&cache.folders, |folder| folder.up) {
        let free = folder.free_bytes.map_or("?".to_owned(), bytes);
        let columns = row(
            &count(folder.entries),
            &bytes(folder.size_bytes),
            &bytes(folder.max_size_bytes),
            &free,
        );
        lines.push(ended(state(folder.up), columns, &folder.path, width));
    }
    lines
}

fn origins(origins: &[Origin], width: Option<usize>) -> Vec<Line<'static>> {
    if origins.is_empty() {
        return Vec::new();
    }
    let rows = down_first(origins, |origin| origin.up).map(|origin| {
        let bucket = match &*origin.bucket {
            "" => "all buckets",
            bucket => bucket,
        };
        let failures = match origin.up {
            true => String::new(),
            false => format!("{} failures in a row, ", origin.failures),
        };
        let name = format!("{bucket} at {}", origin.origin);
        ended(state(origin.up), failures, &name, width)
    });
    [Line::styled("Origins", TITLE)]
        .into_iter()
        .chain(rows)
        .collect()
}

/// Those that are down, and then the others: the end of a list may have no room.
fn down_first<T>(all: &[T], is_up: fn(&T) -> bool) -> impl Iterator<Item = &T> {
    let down = all.iter().filter(move |of| !is_up(of));
    down.chain(all.iter().filter(move |of| is_up(of)))
}

fn keys(keys: &[TopKey], width: Option<usize>) -> Vec<Line<'static>> {
    let title = Span::styled("Top keys", TITLE);
    let what = match keys {
        [] => "    none in the last minutes",
        _ => "    share of the requests of the last minutes",
    };
    let rows = keys.iter().map(|key| {
        let share = Span::raw(format!("{:>7}", percent(key.share)));
        ended(share, "  ".to_owned(), &key.path, width)
    });
    let title = Line::from(vec![title, Span::styled(what, FAINT)]);
    [title].into_iter().chain(rows).collect()
}

fn state(is_up: bool) -> Span<'static> {
    let (state, style) = match is_up {
        true => ("up", GOOD),
        false => ("DOWN", BAD),
    };
    Span::styled(format!("{state:<STATE$}"), style)
}

/// The lines of a text.
fn paragraph(text: &str, width: Option<usize>, style: Style) -> Vec<Line<'static>> {
    let lines = wrapped(text, width.unwrap_or(usize::MAX)).into_iter();
    lines.map(|line| Line::styled(line, style)).collect()
}

/// A line whose end may be long.
fn ended(first: Span<'static>, columns: String, end: &str, width: Option<usize>) -> Line<'static> {
    let columns = Span::raw(columns);
    let room = width.map(|width| width.saturating_sub(first.width() + columns.width()));
    let end = match room {
        Some(room) => elided(end, room),
        None => end.to_owned(),
    };
    Line::from(vec![first, columns, end.into()])
}

fn side_by_side(left: Vec<Line<'static>>, right: Vec<Line<'static>>) -> Vec<Line<'static>> {
    let width = left.iter().map(Line::width).max().unwrap_or(0) + GAP;
    let mut right = right.into_iter();
    let joined = left.into_iter().map(|mut line| {
        let style = line.style;
        for span in &mut line.spans {
            span.style = style.patch(span.style);
        }
        line.style = Style::new();
        if let Some(right) = right.next() {
            let pad = width.saturating_sub(line.width());
            line.push_span(Span::raw(" ".repeat(pad)));
            for span in right.spans {
                let style = right.style.patch(span.style);
                line.push_span(span.style(style));
            }
        }
        line
    });
    joined.collect()
}

#[cfg(test)]
mod tests;
