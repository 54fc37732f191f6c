//! The picture: what waiting costs, with the future and with a gate that spins.
//!
//! Three panels beside each other. It brings its own background, and a dark one where the reader's system is dark, so
//! that it can be read wherever it is shown. Each line is named at its end, and told apart by its marks as well as by
//! its colour.

use std::fmt::Write;

use crate::bench::contention::scenes::{Gate, Measured, Scene};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 330.0;

const STYLE: &str = "\
    text { font: 12px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #59636e }\n\
    .title { font-size: 14px; font-weight: 600; fill: #1f2328 }\n\
    .card { fill: #ffffff; stroke: #d1d9e0 }\n\
    .grid { stroke: #d1d9e0; stroke-width: 1 }\n\
    .line { fill: none; stroke-width: 2.5; stroke-linejoin: round }\n\
    .future { stroke: #0969da; fill: #0969da }\n\
    .spin { stroke: #bc4c00; fill: #bc4c00 }\n\
    .apart { stroke: #59636e; fill: #59636e }\n\
    .line.future, .line.spin, .line.apart { fill: none }\n\
    text.future, text.spin, text.apart { stroke: none; font-weight: 600 }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #9198a1 }\n\
    .title { fill: #f0f6fc }\n\
    .card { fill: #0d1117; stroke: #3d444d }\n\
    .grid { stroke: #2a313a }\n\
    .future { stroke: #58a6ff; fill: #58a6ff }\n\
    .spin { stroke: #f0883e; fill: #f0883e }\n\
    .apart { stroke: #9198a1; fill: #9198a1 }\n\
    }\n";

/// A line through points that were measured.
struct Series {
    name: &'static str,
    class: &'static str,
    points: Vec<(f64, f64)>,
}

/// How numbers become places.
#[derive(Clone, Copy)]
enum Scale {
    /// From 0 to the most.
    Linear { most: f64 },
    /// From one number to another one, each power of ten as long as the next one.
    Logarithmic { least: f64, most: f64 },
}

impl Scale {
    /// 0 to 1.
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear { most } => value / most,
            Scale::Logarithmic { least, most } => (value / least).ln() / (most / least).ln(),
        }
    }

    /// A scale from one power of ten to another one that holds all these.
    fn around(values: impl Iterator<Item = f64>) -> Scale {
        let (mut least, mut most) = (f64::INFINITY, 1.0_f64);
        for value in values {
            (least, most) = (least.min(value.max(1.0)), most.max(value));
        }
        // What is least is not drawn upon the edge.
        let least = 10_f64.powf((least.min(most) / 2.0).max(1.0).log10().floor());
        Scale::Logarithmic { least, most: 10_f64.powf(most.log10().ceil()).max(least * 10.0) }
    }

    fn ticks(self) -> Vec<f64> {
        match self {
            Scale::Linear { most } => (0..=4).map(|quarter| most * f64::from(quarter) / 4.0).collect(),
            Scale::Logarithmic { least, most } => std::iter::successors(Some(least), |tick| Some(tick * 10.0))
                .take_while(|tick| *tick <= most * 1.01)
                .collect(),
        }
    }
}

/// A number of instructions, or of pCPUs, as one says it.
fn number(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e6 => (value / 1e6, " M"),
        value if value >= 1e3 => (value / 1e3, " k"),
        value => (value, ""),
    };
    format!("{}{unit}", (value * 10.0).round() / 10.0)
}

struct Panel {
    title: &'static str,
    /// What the numbers at the side are.
    what: &'static str,
    across: &'static str,
    x: Scale,
    y: Scale,
    /// Where lines go down.
    x_ticks: Vec<f64>,
    series: Vec<Series>,
}

/// Draws what was measured by turns.
pub fn draw(measured: &[Measured]) -> String {
    let panels = [late(measured), burnt(measured), runs(measured)];
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Waiting for a save, with the future and with a gate that spins\">\n<style>\n{STYLE}</style>\n\
         <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
        WIDTH - 1.0,
        HEIGHT - 1.0
    );
    let width = WIDTH / panels.len() as f64;
    for (index, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, index as f64 * width, width);
    }
    svg + "</svg>\n"
}

/// The scenes in which a save is held, of one build: how long a wait took where the gate spins, and a figure.
fn held(measured: &[Measured], gate: Gate, figure: fn(&Measured) -> u64) -> Vec<(f64, f64)> {
    let of = |gate: Gate| measured.iter().filter(move |it| it.gate == gate && matches!(it.scene, Scene::Held { .. }));
    // Which save is how long says the build that waits for its end, whatever comes.
    of(Gate::Spin).zip(of(gate)).map(|(long, it)| (long.figures.wait_time.p50 as f64, figure(it) as f64)).collect()
}

fn both_gates(points: impl Fn(Gate) -> Vec<(f64, f64)>) -> Vec<Series> {
    let of = |gate: Gate| Series { name: gate.name(), class: gate.name(), points: points(gate) };
    Gate::BOTH.map(of).into()
}

fn against_save(title: &'static str, what: &'static str, series: Vec<Series>) -> Panel {
    let all = || series.iter().flat_map(|series| series.points.iter().copied());
    let (x, y) = (Scale::around(all().map(|point| point.0)), Scale::around(all().map(|point| point.1)));
    Panel { title, what, across: "length of the save, instructions", x_ticks: x.ticks(), x, y, series }
}

fn late(measured: &[Measured]) -> Panel {
    let series = both_gates(|gate| held(measured, gate, |it| it.figures.late.max));
    against_save("Interrupt in a wait, to its handler", "instructions of the pCPU, worst", series)
}

fn burnt(measured: &[Measured]) -> Panel {
    let series = both_gates(|gate| held(measured, gate, |it| it.figures.burnt.max));
    against_save("Burnt in a wait by its pCPU", "instructions of the pCPU, worst", series)
}

fn runs(measured: &[Measured]) -> Panel {
    let cost = |wanted: fn(&Measured) -> Option<u32>| -> Vec<(f64, f64)> {
        let cost = |it: &Measured| Some((f64::from(wanted(it)?), it.figures.el2_per_run as f64));
        measured.iter().filter_map(cost).collect()
    };
    let apart = cost(|it| match (it.scene, it.gate) {
        (Scene::Apart { cpus }, Gate::Future) => Some(cpus),
        _ => None,
    });
    let future = cost(|it| match (it.scene, it.gate) {
        (Scene::Shared { cpus }, Gate::Future) => Some(cpus),
        _ => None,
    });
    let spin = cost(|it| match (it.scene, it.gate) {
        (Scene::Shared { cpus }, Gate::Spin) => Some(cpus),
        _ => None,
    });
    let most = apart.iter().chain(&future).chain(&spin).map(|point| point.1).fold(1.0, f64::max);
    Panel {
        title: "EL2 instructions for each run",
        what: "one vCPU for all, or one for each",
        across: "pCPUs",
        x: Scale::Logarithmic { least: 1.0, most: 8.0 },
        y: Scale::Linear { most: (most / 1000.0).ceil() * 1000.0 },
        x_ticks: vec![1.0, 2.0, 4.0, 8.0],
        series: vec![
            Series { name: "one each", class: "apart", points: apart },
            Series { name: "future", class: "future", points: future },
            Series { name: "spin", class: "spin", points: spin },
        ],
    }
}

impl Panel {
    /// Draws it into the strip that begins at `left`.
    fn draw(&self, svg: &mut String, left: f64, width: f64) {
        const TOP: f64 = 72.0;
        const BOTTOM: f64 = HEIGHT - 52.0;
        let (start, end) = (left + 56.0, left + width - 84.0);
        let x = |value: f64| start + (end - start) * self.x.place(value);
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * self.y.place(value);
        let mut text = |class: &str, anchor: &str, x: f64, y: f64, text: &str| {
            let _ = writeln!(
                svg,
                "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
            );
        };
        text("title", "start", left + 20.0, 30.0, self.title);
        text("", "start", left + 20.0, 50.0, self.what);
        text("", "middle", (start + end) / 2.0, HEIGHT - 14.0, self.across);
        for &tick in &self.x_ticks {
            text("", "middle", x(tick), BOTTOM + 18.0, &number(tick));
        }
        for tick in self.y.ticks() {
            text("", "end", start - 8.0, y(tick) + 4.0, &number(tick));
        }
        for (series, place) in self.series.iter().zip(self.names(y)) {
            let last = series.points.last().map_or(end, |point| x(point.0));
            text(series.class, "start", last + 10.0, place + 4.0, series.name);
        }
        for tick in self.y.ticks() {
            let y = y(tick);
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{start:.1} {y:.1}H{end:.1}\"/>");
        }
        for Series { class, points, .. } in &self.series {
            let places: Vec<(f64, f64)> = points.iter().map(|point| (x(point.0), y(point.1))).collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let _ = writeln!(svg, "<path class=\"line {class}\" d=\"M{}\"/>", path.join("L"));
            for (x, y) in places {
                let _ = match *class {
                    "spin" => {
                        writeln!(
                            svg,
                            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"6\" height=\"6\"/>",
                            x - 3.0,
                            y - 3.0
                        )
                    }
                    _ => writeln!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"),
                };
            }
        }
    }

    /// How high the name of each series is: at the end of its line, and clear of the others'.
    fn names(&self, y: impl Fn(f64) -> f64) -> Vec<f64> {
        const LINE: f64 = 15.0;
        let ends = self.series.iter().map(|series| series.points.last().map_or(0.0, |point| y(point.1)));
        let mut places: Vec<(usize, f64)> = ends.enumerate().collect();
        places.sort_by(|a, b| b.1.total_cmp(&a.1));
        for index in 1..places.len() {
            places[index].1 = places[index].1.min(places[index - 1].1 - LINE);
        }
        places.sort_by_key(|(index, _)| *index);
        places.into_iter().map(|(_, place)| place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::contention::figures::{Distribution, Figures};

    fn measured() -> Vec<Measured> {
        let figures = |most: u64| Figures {
            el2_per_run: most,
            late: Distribution { count: 9, max: most, ..Distribution::default() },
            burnt: Distribution { count: 9, max: most, ..Distribution::default() },
            wait_time: Distribution { count: 9, p50: 20 * most, ..Distribution::default() },
            ..Figures::default()
        };
        let scenes = [
            (Scene::Apart { cpus: 1 }, 1129),
            (Scene::Shared { cpus: 8 }, 3700),
            (Scene::Held { instructions: 4096 }, 20_000),
            (Scene::Held { instructions: 65_536 }, 300_000),
        ];
        let gates = |(scene, most)| Gate::BOTH.map(|gate| Measured { scene, gate, figures: figures(most) });
        scenes.into_iter().flat_map(gates).collect()
    }

    #[test]
    fn every_line_and_every_name_is_drawn() {
        let svg = draw(&measured());
        assert_eq!(svg.matches("class=\"line ").count(), 2 + 2 + 3);
        for name in ["future", "spin", "one each"] {
            assert!(svg.contains(&format!(">{name}</text>")), "{name} is not in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg, draw(&measured()));
    }

    #[test]
    fn scales_hold_what_they_are_made_for() {
        let scale = Scale::around([416.0, 300_000.0].into_iter());
        assert_eq!(scale.ticks().first().zip(scale.ticks().last()), Some((&100.0, &1e6)));
        assert!(scale.place(100.0).abs() < 1e-9 && (scale.place(1e6) - 1.0).abs() < 1e-9);
        assert_eq!(Scale::Linear { most: 4000.0 }.ticks(), [0.0, 1000.0, 2000.0, 3000.0, 4000.0]);
        for value in [Scale::around([].into_iter()), Scale::around([0.0, 1.0].into_iter())] {
            assert!(value.ticks().len() >= 2);
        }
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 8.0, 250.0, 1000.0, 3500.0, 1e6].map(number);
        assert_eq!(texts, ["0", "8", "250", "1 k", "3.5 k", "1 M"]);
    }

    #[test]
    fn names_do_not_lie_upon_each_other() {
        let places = runs(&measured()).names(|value| 300.0 - value / 20.0);
        assert!(places[0] - places[1].max(places[2]) >= 15.0, "{places:?}");
        assert!((places[1] - places[2]).abs() >= 15.0, "{places:?}");
    }
}
