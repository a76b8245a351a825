//! Graphs in the languages of Graphviz and Mermaid.

use super::{Drawing, State, TOUCHED};

/// The graph for Graphviz.
pub fn dot(drawing: &Drawing) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = format!("digraph {} {{\n  rankdir=TB;\n", quoted(&drawing.name));
    out += "  node [shape=box, style=\"rounded,filled\", fontname=\"Helvetica\"];\n";
    for (index, node) in drawing.nodes.iter().enumerate() {
        let (fill, border) = node.state().colors();
        let label = [node.title(), format!("{}: {}", node.kind, node.words())].map(|line| quoted(&line));
        // Graphviz breaks lines at `\n`, which must not be escaped.
        let label = format!("{}\\n{}", label[0].trim_end_matches('"'), label[1].trim_start_matches('"'));
        let (border, width) = if node.touched > 0 { (TOUCHED, 3) } else { (border, 1) };
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
        let (name, meaning) = (state.class(), quoted(state.meaning()));
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
    // Mermaid's entities have `#` in place of `&`, and a quotation mark ends a label.
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
    for (index, node) in drawing.nodes.iter().enumerate() {
        let label = format!("{}<br/>{}: {}", safe(&node.title()), safe(&node.kind), node.words());
        out += &format!("  n{index}[\"{label}\"]:::{}\n", node.state().class());
    }
    for (from, to) in &drawing.edges {
        out += &format!("  n{from} --> n{to}\n");
    }
    out += "  subgraph legend\n";
    for state in State::ALL {
        out += &format!("    legend_{0}[\"{1}\"]:::{0}\n", state.class(), state.meaning());
    }
    if drawing.change {
        out += "    legend_touched[\"touched by the change\"]:::touched\n";
    }
    out += "  end\n";
    for state in State::ALL {
        let (fill, border) = state.colors();
        out += &format!("  classDef {} fill:{fill},stroke:{border},color:#1b1b1b\n", state.class());
    }
    if drawing.change {
        out += &format!("  classDef touched stroke:{TOUCHED},stroke-width:3px\n");
        let touched = (0..drawing.nodes.len()).filter(|index| drawing.nodes[*index].touched > 0);
        let names: Vec<String> = touched.map(|index| format!("n{index}")).collect();
        if !names.is_empty() {
            out += &format!("  class {} touched\n", names.join(","));
        }
    }
    out
}
