//! A graph in the languages of Graphviz and Mermaid.

use super::{Drawing, State, TOUCHED};

/// The graph for Graphviz.
pub fn dot(drawing: &Drawing) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = format!("digraph {} {{\n  rankdir=TB;\n", quoted(&drawing.name));
    out += "  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\"];\n";
    for (index, vertex) in drawing.vertices.iter().enumerate() {
        let (fill, border) = vertex.state().colors();
        let label =
            [vertex.title(), format!("{}: {}", vertex.kind, vertex.words())].map(|line| quoted(&line));
        // Graphviz breaks lines at `\n`, which must not be escaped.
        let label = format!("{}\\n{}", label[0].trim_end_matches('"'), label[1].trim_start_matches('"'));
        let (border, width) = if vertex.touched > 0 { (TOUCHED, 3) } else { (border, 1) };
        out += &format!(
            "  n{index} [label={label}, fillcolor=\"{fill}\", color=\"{border}\", penwidth={width}];\n"
        );
    }
    for (from, to) in &drawing.edges {
        out += &format!("  n{from} -> n{to};\n");
    }
    out += "  subgraph cluster_legend {\n    label=\"legend\";\n    color=\"#999999\";\n";
    for state in State::ALL {
        let (fill, border) = state.colors();
        let (name, meaning) = (state.word(), quoted(state.meaning()));
        out += &format!("    legend_{name} [label={meaning}, fillcolor=\"{fill}\", color=\"{border}\"];\n");
    }
    if drawing.change {
        out += &format!(
            "    legend_touched [label=\"touched by the change\", fillcolor=\"white\", color=\"{TOUCHED}\", penwidth=3];\n"
        );
    }
    out + "  }\n}\n"
}

/// The graph for Mermaid.
pub fn mermaid(drawing: &Drawing) -> String {
    // Mermaid reads HTML entities without their `&`, and quotation marks end a label.
    let safe = |text: &str| {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '#' | '"' | '<' | '>' | '&' | '`' => out += &format!("#{};", u32::from(c)),
                c => out.push(c),
            }
        }
        out
    };
    let mut out = String::from("flowchart TD\n");
    for (index, vertex) in drawing.vertices.iter().enumerate() {
        let label = format!("{}<br/>{}: {}", safe(&vertex.title()), safe(&vertex.kind), vertex.words());
        out += &format!("  n{index}[\"{label}\"]:::{}\n", vertex.state().word());
    }
    for (from, to) in &drawing.edges {
        out += &format!("  n{from} --> n{to}\n");
    }
    out += "  subgraph legend\n";
    for state in State::ALL {
        out += &format!("    legend_{0}[\"{1}\"]:::{0}\n", state.word(), state.meaning());
    }
    if drawing.change {
        out += "    legend_touched[\"touched by the change\"]:::touched\n";
    }
    out += "  end\n";
    for state in State::ALL {
        let (fill, border) = state.colors();
        out += &format!("  classDef {} fill:{fill},stroke:{border},color:#1b1b1b\n", state.word());
    }
    if drawing.change {
        out += &format!("  classDef touched stroke:{TOUCHED},stroke-width:3px\n");
        let touched = (0..drawing.vertices.len()).filter(|index| drawing.vertices[*index].touched > 0);
        let names: Vec<String> = touched.map(|index| format!("n{index}")).collect();
        if !names.is_empty() {
            out += &format!("  class {} touched\n", names.join(","));
        }
    }
    out
}
