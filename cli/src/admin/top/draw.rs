//! How it is drawn: a function of the model alone.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};
use tramontane_cluster::admin::Severity;

use super::model::{Column, CoordinatorRow, Model, NodeRow};

/// Findings that are shown, at most.
const FINDINGS: usize = 4;
/// Rows of the part with the hottest experts, its frame included.
const HOTTEST: u16 = 8;
/// Columns of the longest bar.
const BAR: f32 = 24.0;

/// Draws all of it; what does not fit is cut.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let coordinators = model.coordinators();
    let head = 1 + model.findings().len().min(FINDINGS + 1) as u16;
    let parts = Layout::vertical([
        Constraint::Length(head),
        Constraint::Length(coordinators.len() as u16 + 3),
        Constraint::Min(5),
        Constraint::Length(HOTTEST),
        Constraint::Length(1),
    ])
    .split(frame.area());
    draw_head(frame, parts[0], model);
    draw_coordinators(frame, parts[1], &coordinators);
    draw_nodes(frame, parts[2], model);
    draw_hottest(frame, parts[3], model);
    let keys = "q quit   p pause   s ← → sort   r reverse";
    let state = if model.paused { "PAUSED   " } else { "" };
    frame.render_widget(
        Paragraph::new(format!("{state}{keys}")).style(Style::new().add_modifier(Modifier::DIM)),
        parts[4],
    );
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let colour = match model.health() {
        "HEALTH_OK" => Color::Green,
        "HEALTH_WARN" => Color::Yellow,
        _ => Color::Red,
    };
    let mut first = vec![Span::styled(model.health(), Style::new().fg(colour).add_modifier(Modifier::BOLD))];
    if let Some(status) = model.status() {
        let placement = status.view.placement.as_ref();
        let model = placement.map_or("no placement yet", |placement| placement.model.as_str());
        let epoch = placement.map_or(0, |placement| placement.epoch.0);
        let moving = if status.view.orders.rebalance.is_some() { ", rebalancing" } else { "" };
        let (layers, experts) = (status.layers, status.experts);
        first.push(Span::raw(format!("  {model}: {layers} layers of {experts} experts, epoch {epoch}{moving}")));
    }
    let mut lines = vec![Line::from(first)];
    let findings = model.findings();
    for finding in findings.iter().take(FINDINGS) {
        let (mark, colour) = match finding.severity {
            Severity::Warn => ("warn", Color::Yellow),
            Severity::Err => ("ERR ", Color::Red),
        };
        lines.push(Line::from(vec![
            Span::styled(format!("  {mark}  "), Style::new().fg(colour)),
            Span::raw(finding.what.as_str()),
        ]));
    }
    if findings.len() > FINDINGS {
        lines.push(Line::raw(format!("        and {} more", findings.len() - FINDINGS)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_coordinators(frame: &mut Frame<'_>, area: Rect, rows: &[CoordinatorRow]) {
    let row = |row: &CoordinatorRow| {
        let name = Cell::from(row.name.clone());
        if let Some(error) = &row.error {
            return Row::new([name, Cell::from(error.clone()).style(Style::new().fg(Color::Red))]);
        }
        let state = if row.loading { "loading" } else { "up" };
        let tokens = figure(row.tokens);
        let kv = format!("{} %", row.kv_percent);
        Row::new([name, state.into(), right(row.running), right(row.waiting), right(tokens), right(kv)])
    };
    let widths = [
        Constraint::Length(20),
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(6),
    ];
    let head = Row::new([
        "COORDINATOR".into(),
        "STATE".into(),
        right("RUNNING"),
        right("WAITING"),
        right("TOKENS/S"),
        right("KV"),
    ]);
    // An error has the whole line.
    let whole = rows.iter().all(|row| row.error.is_some());
    let widths = if whole { vec![Constraint::Length(20), Constraint::Fill(1)] } else { widths.to_vec() };
    let table = Table::new(rows.iter().map(row), widths).header(head.style(heading())).block(part("coordinators"));
    frame.render_widget(table, area);
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.nodes();
    let row = |row: &NodeRow| {
        let colour = match row.state {
            "up" => Color::Reset,
            "quarantined" | "gone" | "refused" => Color::Red,
            _ => Color::Yellow,
        };
        Row::new([
            Cell::from(row.id.to_string()),
            Cell::from(row.state).style(Style::new().fg(colour)),
            right(row.held),
            right(figure(row.rows)),
            right(figure(row.dispatches)),
            right(row.traffic.map_or_else(|| "-".to_owned(), |t| format!("{:.1} ms", t.observed * 1000.0))),
            right(row.late().map_or_else(|| "-".to_owned(), |late| format!("{:.0} %", late * 100.0))),
            right(if row.speed > 0 { row.speed.to_string() } else { "-".to_owned() }),
        ])
    };
    let head = Column::ALL.map(|(column, name)| {
        let mark = match (column == model.column, model.descending) {
            (false, _) => "",
            (true, true) => "▼",
            (true, false) => "▲",
        };
        let text = format!("{name}{mark}");
        if matches!(column, Column::Node | Column::State) { Cell::from(text) } else { right(text) }
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(13),
        Constraint::Length(9),
        Constraint::Length(13),
        Constraint::Length(8),
    ];
    let title = format!("nodes: {}", rows.len());
    let table = Table::new(rows.iter().map(row), widths).header(Row::new(head).style(heading())).block(part(&title));
    frame.render_widget(table, area);
}

fn draw_hottest(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.hottest();
    let most = rows.first().map_or(1.0, |row| row.rate);
    let line = |row: &super::model::ExpertRow| {
        let bar = "█".repeat((row.rate / most * BAR).ceil() as usize);
        Line::from(vec![
            Span::raw(format!("{:<10}{:>8.1}  ", row.id.to_string(), row.rate)),
            Span::styled(format!("{bar:<24}"), Style::new().fg(Color::Red)),
            Span::raw(format!("  {}", row.holders)),
        ])
    };
    let lines: Vec<Line<'_>> = rows.iter().map(line).collect();
    let lines = if lines.is_empty() { vec![Line::raw("no rows yet")] } else { lines };
    frame.render_widget(Paragraph::new(lines).block(part("hottest experts: rows/s, holders")), area);
}

fn part(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).title(format!(" {title} "))
}

fn heading() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn right(figure: impl ToString) -> Cell<'static> {
    Cell::from(Line::from(figure.to_string()).alignment(Alignment::Right))
}

/// A rate for people.
fn figure(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 99.95 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::tests::model;
    use super::super::model::{Key, Sample};
    use super::*;

    fn drawn(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, model)).expect("it is drawn");
        let buffer = terminal.backend().buffer();
        let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn everything_that_is_to_be_seen_is_there() {
        let lines = drawn(&model(), 100, 24);
        let line =
            |of: &str| lines.iter().find(|line| line.starts_with(of)).map(|line| words(line)).unwrap_or_default();
        assert!(lines[0].starts_with("HEALTH_WARN  no placement yet: 1 layers of 4 experts, epoch 0"), "{lines:#?}");
        assert_eq!(words(&lines[1]), ["warn", "node", "b", "is", "cordoned"]);
        assert_eq!(line("COORDINATOR"), ["COORDINATOR", "STATE", "RUNNING", "WAITING", "TOKENS/S", "KV"]);
        assert_eq!(line("c0"), ["c0", "up", "3", "1", "40.0", "25", "%"]);
        assert_eq!(line("c1:1"), ["c1:1", "c1:1", "cannot", "be", "reached"]);
        assert_eq!(line("NODE")[..4], ["NODE▲", "STATE", "HELD", "ROWS/S"]);
        assert_eq!(line("a "), ["a", "up", "2", "20.0", "10.0", "15.0", "ms", "150", "%", "100"]);
        assert_eq!(line("b "), ["b", "cordoned", "4", "10.0", "5.0", "15.0", "ms", "150", "%", "300"]);
        let hottest = line("L0/E3");
        assert_eq!((hottest[1], hottest[2], hottest[3]), ("3.0", "█".repeat(24).as_str(), "b"), "{lines:#?}");
        assert!(lines[23].starts_with("q quit"));
    }

    #[test]
    fn it_fits_whatever_the_terminal_and_says_when_it_stands_still() {
        let mut model = model();
        model.press(Key::Pause);
        assert!(drawn(&model, 100, 24)[23].starts_with("PAUSED"));
        for (width, height) in [(1, 1), (20, 5), (80, 10), (300, 100)] {
            drawn(&model, width, height);
        }
        model.press(Key::Pause);
        model.see(Sample { at: std::time::Instant::now(), all: vec![("c0:1".into(), Err("gone".into()))] });
        let lines = drawn(&model, 80, 24);
        assert!(lines[0].starts_with("UNREACHABLE"), "{lines:#?}");
    }
}
