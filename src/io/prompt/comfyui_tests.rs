//! Graphs as ComfyUI writes them, made by hand.

use serde_json::json;

use super::*;

fn parsed(graph: &str) -> Result<Option<Found>, PromptError> {
    let text = Text { value: graph.to_owned(), part: "the chunk tEXt `prompt`".to_owned(), at: 33 };
    read(&text, Path::new("a.png"))
}

/// A sampler, its model, a negative prompt, and other nodes; the sampler's positive input is node 6.
fn graph(nodes: Value) -> Value {
    let mut graph = json!({
        "3": sampler("6"),
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
        "7": encode("ugly"),
    });
    for (id, node) in nodes.as_object().unwrap() {
        graph[id] = node.clone();
    }
    graph
}

fn sampler(positive: &str) -> Value {
    json!({"class_type": "KSampler", "_meta": {"title": "KSampler"}, "inputs": {
        "seed": 18446744073709551615_u64, "steps": 20, "cfg": 7.5, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 1, "model": ["4", 0], "positive": [positive, 0],
        "negative": ["7", 0], "latent_image": ["5", 0],
    }})
}

fn encode(text: impl Into<Value>) -> Value {
    json!({"class_type": "CLIPTextEncode", "inputs": {"text": text.into(), "clip": ["4", 1]}})
}

fn node(class: &str, inputs: Value) -> Value {
    json!({"class_type": class, "inputs": inputs})
}

#[test]
fn a_text_is_followed_through_nodes_that_pass_it_on() {
    let sdxl = json!({"text_g": "a cat", "text_l": "a cat", "clip": ["4", 1], "width": 1024, "height": 1024});
    let combined = json!({"conditioning_1": ["8", 0], "conditioning_2": ["9", 0]});
    let area = json!({"conditioning": ["8", 0], "x": 0, "y": 0, "strength": 1});
    let control = json!({"positive": ["8", 0], "negative": ["7", 0], "control_net": ["9", 0], "strength": 1});
    let table = [
        ("plain", json!({"6": encode(" a cat\n")})),
        ("reroute", json!({"6": node("Reroute", json!({"": ["8", 0]})), "8": encode("a cat")})),
        ("area", json!({"6": node("ConditioningSetArea", area), "8": encode("a cat")})),
        ("control net", json!({"6": node("ControlNetApplyAdvanced", control), "8": encode("a cat")})),
        ("SDXL", json!({"6": node("CLIPTextEncodeSDXL", sdxl)})),
        (
            "twice the same",
            json!({
                "6": node("ConditioningCombine", combined),
                "8": encode("a cat"), "9": encode("a cat"),
            }),
        ),
        (
            "constants",
            json!({
                "6": encode(json!(["8", 0])),
                "8": node("Reroute (rgthree)", json!({"": ["9:1", 0]})),
                "9:1": node("PrimitiveString", json!({"value": ["10", 0]})),
                "10": node("PrimitiveStringMultiline", json!({"value": "a cat"})),
            }),
        ),
        ("two samplers", json!({"6": encode("a cat"), "10": sampler("6")})),
        (
            "a number as id",
            json!({"3": sampler("6"), "6": node("Reroute", json!({"": [8, 0]})), "8": encode("a cat")}),
        ),
    ];
    for (what, nodes) in table {
        let found = parsed(&graph(nodes).to_string()).unwrap().unwrap();
        assert_eq!((found.prompt.as_str(), found.negative.as_deref()), ("a cat", Some("ugly")), "{what}");
        let settings: Vec<(&str, &str)> =
            found.settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let expected = [
            ("CFG scale", "7.5"),
            ("Model", "sd15.safetensors"),
            ("Sampler", "euler"),
            ("Schedule type", "normal"),
            ("Seed", "18446744073709551615"),
            ("Size", "512x768"),
            ("Steps", "20"),
        ];
        assert_eq!(settings, expected, "{what}");
    }
}

#[test]
fn other_samplers_are_known_by_what_they_take() {
    let table = [
        (
            "KSamplerAdvanced",
            json!({"noise_seed": 5, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}),
            true,
        ),
        (
            "SamplerCustom",
            json!({"noise_seed": 5, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}),
            true,
        ),
        ("CFGGuider", json!({"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}), true),
        ("BasicGuider", json!({"conditioning": ["6", 0], "model": ["4", 0]}), false),
    ];
    for (class, inputs, negative) in table {
        let found = parsed(&graph(json!({"3": node(class, inputs), "6": encode("a cat")})).to_string());
        let found = found.unwrap().unwrap();
        assert_eq!((found.prompt.as_str(), found.negative.is_some()), ("a cat", negative), "{class}");
    }
}

#[test]
fn several_texts_are_listed() {
    let long = "long ".repeat(40);
    let both = |class: &str| {
        let inputs = match class {
            "ConditioningCombine" => json!({"conditioning_1": ["8", 0], "conditioning_2": ["10", 0]}),
            _ => json!({"conditioning_to": ["8", 0], "conditioning_from": ["10", 0]}),
        };
        json!({"6": node(class, inputs), "8": encode("a cat"), "10": encode(long.clone())})
    };
    let sdxl = json!({"text_g": "a cat", "text_l": "a dog", "clip": ["4", 1]});
    let a_cat = "node 8 (CLIPTextEncode): \"a cat\"";
    let cut = format!("node 10 (CLIPTextEncode): \"{}…\"", "long ".repeat(16));
    let table = [
        (both("ConditioningCombine"), format!("{a_cat}; {cut}")),
        (both("ConditioningAverage"), format!("{cut}; {a_cat}")),
        (
            json!({"6": node("CLIPTextEncodeSDXL", sdxl)}),
            "node 6 (CLIPTextEncodeSDXL): \"a cat\"; node 6 (CLIPTextEncodeSDXL): \"a dog\"".to_owned(),
        ),
        (
            json!({"6": encode("a cat"), "10": sampler("8"), "8": encode("a dog")}),
            "node 6 (CLIPTextEncode): \"a cat\"; node 8 (CLIPTextEncode): \"a dog\"".to_owned(),
        ),
    ];
    for (nodes, expected) in table {
        let error = parsed(&graph(nodes).to_string()).unwrap_err().to_string();
        let expected =
            format!("a.png: 2 texts may have made this picture: {expected}; give the caption yourself");
        assert_eq!(error, expected);
    }
    // Without a sampler that is known, any text may be the one.
    let piped = json!({"6": encode("a cat"), "3": node("easy kSampler", json!({"pipe": ["6", 0]}))});
    let error = parsed(&piped.to_string()).unwrap_err().to_string();
    assert!(
        error.contains("1 text may have made this picture: node 6 (CLIPTextEncode): \"a cat\""),
        "{error}"
    );
    let many: Map<String, Value> = (0..20).map(|id| (id.to_string(), encode(id.to_string()))).collect();
    let error = parsed(&Value::from(many).to_string()).unwrap_err().to_string();
    assert!(error.contains("node 7 (CLIPTextEncode): \"7\"; and 12 more; give"), "{error}");
}

#[test]
fn a_text_that_is_computed_is_not_known() {
    let table = [
        (
            json!({"6": encode(json!(["8", 0])), "8": node("StringConcatenate", json!({"string_a": "a"}))}),
            "8 (StringConcatenate)",
        ),
        (
            json!({"6": node("ImpactWildcardEncode", json!({"populated_text": "a", "clip": ["4", 1]}))}),
            "6 (ImpactWildcardEncode)",
        ),
        (
            json!({"6": node("ConditioningZeroOut", json!({"conditioning": ["7", 0]}))}),
            "6 (ConditioningZeroOut)",
        ),
        (
            json!({"6": node("GLIGENTextBoxApply", json!({"conditioning_to": ["7", 0], "text": "a"}))}),
            "6 (GLIGENTextBoxApply)",
        ),
        (json!({"6": node("Reroute", json!({"a": ["7", 0], "b": ["7", 0]}))}), "6 (Reroute)"),
        // The negative side of a node is not taken for the positive one.
        (
            json!({
                "6": node("Reroute", json!({"": ["8", 1]})),
                "8": node("ApplyInstantID", json!({"positive": ["7", 0], "negative": ["7", 0]})),
            }),
            "8 (ApplyInstantID)",
        ),
    ];
    for (nodes, expected) in table {
        let error = parsed(&graph(nodes).to_string()).unwrap_err();
        assert!(matches!(error, PromptError::Computed { .. }));
        let expected = format!(
            "a.png: the text is computed by node {expected}, and the picture does not hold the result; give \
             the caption yourself"
        );
        assert_eq!(error.to_string(), expected);
    }
    // Of the negative text, that is no error.
    let nodes =
        json!({"6": encode("a cat"), "7": node("ConditioningZeroOut", json!({"conditioning": ["6", 0]}))});
    let found = parsed(&graph(nodes).to_string()).unwrap().unwrap();
    assert_eq!((found.prompt.as_str(), found.negative), ("a cat", None));
}

#[test]
fn the_search_ends() {
    let reroute = |to: String| node("Reroute", json!({"": [to, 0]}));
    let circle = json!({"6": reroute("8".to_owned()), "8": reroute("6".to_owned())});
    let chain = |length: usize| {
        let mut nodes = json!({});
        for place in 0..length - 1 {
            let id = if place == 0 { "6".to_owned() } else { (100 + place).to_string() };
            nodes[id] = reroute((101 + place).to_string());
        }
        nodes[(99 + length).to_string()] = encode("a cat");
        nodes
    };
    let reason = |nodes: Value| match parsed(&graph(nodes).to_string()) {
        Err(PromptError::NoText { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(circle), "its links go in a circle");
    assert_eq!(reason(json!({})), "node 6 is linked to, and is not there");
    // The first link leads from the sampler to node 6.
    assert!(parsed(&graph(chain(16)).to_string()).unwrap().is_some_and(|found| found.prompt == "a cat"));
    assert_eq!(reason(chain(17)), "node 116 is more than 16 links from the sampler");
}

#[test]
fn what_is_no_graph_is_no_error_unless_it_is_damaged() {
    let saved = node("SaveImage", json!({"images": ["1", 0]}));
    let upscaled = json!({"1": node("LoadImage", json!({"image": "a.png"})), "2": saved});
    for text in ["a cat", "", "[1]", "{}", r#"{"prompt": "a cat"}"#, &upscaled.to_string()] {
        assert_eq!(parsed(text).unwrap(), None, "{text}");
    }
    let error = parsed("{\"3\": {\"class_type\": ").unwrap_err().to_string();
    let begins = "a.png: the chunk tEXt `prompt` at byte 33 is damaged: its graph is not JSON: EOF";
    assert!(error.starts_with(begins), "{error}");
}

#[test]
fn numbers_that_json_does_not_have_are_read() {
    let mut nodes = graph(json!({"6": encode("a cat named NaN, \"-Infinity\" \\")}));
    nodes["6"]["is_changed"] = json!(["@"]);
    for number in ["NaN", "Infinity", "-Infinity"] {
        let found = parsed(&nodes.to_string().replace("\"@\"", number)).unwrap().unwrap();
        assert_eq!(found.prompt, "a cat named NaN, \"-Infinity\" \\");
    }
}
