//! The page is held to what it promises: nothing from elsewhere, no HTML made of texts, and the API as it is described.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::openapi;
use super::*;

/// Most bytes of all pieces together.
const MOST_BYTES: usize = 32 << 10;
/// The one address that is no place to fetch something from: it says that the icon is SVG.
const SVG: &str = "http://www.w3.org/2000/svg";

fn piece(path: &str) -> &'static str {
    PIECES.iter().find(|piece| piece.path == path).map(|piece| piece.text).expect("a piece")
}

fn scripts() -> String {
    [piece("/ui/console.js"), piece("/ui/text.js")].concat()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$')
}

/// What stands in `text` between each `before` and the next `after`.
fn between<'t>(text: &'t str, before: &str, after: char) -> BTreeSet<&'t str> {
    text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
}

/// The fields that `script` reads and writes of what it calls `variable`.
fn fields<'s>(script: &'s str, variable: &str) -> BTreeSet<&'s str> {
    let found = script.match_indices(variable).filter_map(|(at, _)| {
        let rest = &script[at + variable.len()..];
        let field = rest.strip_prefix('.').or_else(|| rest.strip_prefix("?."))?;
        let of_another = script[..at].ends_with(|before: char| is_name(before) || before == '.');
        (!of_another).then(|| field.split(|c| !is_name(c)).next().unwrap_or_default())
    });
    found.collect()
}

fn description() -> Value {
    serde_json::from_str(&openapi::JSON).expect("JSON")
}

#[test]
fn nothing_comes_from_elsewhere_and_every_piece_is_used() {
    let page = piece("/ui");
    let mut used: BTreeSet<String> = BTreeSet::from(["/ui".to_owned()]);
    used.extend(
        between(page, "src=\"", '"').into_iter().chain(between(page, "href=\"", '"')).map(|to| format!("/{to}")),
    );
    used.extend(between(&scripts(), " from \"./", '"').into_iter().map(|to| format!("/ui/{to}")));
    assert_eq!(used, PIECES.iter().map(|piece| piece.path.to_owned()).collect());
    for Piece { path, text, .. } in &PIECES {
        let text = text.replace(SVG, "");
        for outside in
            ["://", "\"//", "'//", "url(", "@import", "import(", "data:", "WebSocket", "EventSource", "Worker"]
        {
            // The prefix of an event's lines.
            let text = text.replace("startsWith(\"data:\")", "");
            assert!(!text.contains(outside), "{path}: {outside}");
        }
    }
    assert!(PIECES.iter().map(|piece| piece.text.len()).sum::<usize>() <= MOST_BYTES);
}

#[test]
fn no_text_becomes_html_and_nothing_is_kept_beyond_the_tab() {
    let script = scripts();
    for sink in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "setHTML",
        "document.write",
        "createContextualFragment",
        "DOMParser",
        "srcdoc",
        "eval(",
        "Function(",
        "setAttribute(\"on",
        "localStorage",
        "indexedDB",
        "cookie",
        "caches",
    ] {
        assert!(!script.contains(sink), "{sink}");
    }
    let page = piece("/ui");
    assert_eq!(page.matches("<script").count(), page.matches("<script type=\"module\" src=").count());
    for inline in ["<style", " style=", " onclick", " onload", " onerror", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
}

#[test]
fn the_script_speaks_the_api_as_it_is_described() {
    let (script, description) = (scripts(), description());
    let routes: BTreeSet<_> =
        between(&script, "call(\"", '"').into_iter().chain(between(&script, "fetch(\"", '"')).collect();
    assert!(routes.contains("v1/chat/completions"), "{routes:?}");
    for route in routes {
        assert!(description["paths"][format!("/{route}")].is_object(), "{route}");
    }
    for (variable, schema) in [
        ("body", "ChatBody"),
        ("chunk", "ChatChunk"),
        ("choice", "ChunkChoice"),
        ("delta", "Delta"),
        ("usage", "UsageBody"),
        ("said", "ErrorBody"),
        ("error", "ErrorObject"),
        ("listed", "Models"),
        ("model", "ModelBody"),
        ("capabilities", "Capabilities"),
        ("version", "Version"),
        ("engine", "EngineBody"),
    ] {
        let (fields, properties) =
            (fields(&script, variable), &description["components"]["schemas"][schema]["properties"]);
        assert!(!fields.is_empty(), "{variable}");
        for field in fields {
            assert!(properties[field].is_object(), "{variable}.{field} is not in {schema}");
        }
    }
    assert!(script.contains("{ continuous_usage_stats: true }"));
    assert!(description["components"]["schemas"]["StreamOptions"]["properties"]["continuous_usage_stats"].is_object());
}

#[test]
fn the_settings_are_parameters_and_show_their_defaults() {
    let description = description();
    let parameters = &description["components"]["schemas"]["ChatBody"]["properties"];
    let fields: Vec<_> = piece("/ui").split('<').filter(|tag| tag.contains(" name=\"")).collect();
    assert!(fields.len() >= 10, "{fields:?}");
    for field in fields {
        let of = |attribute: &str| between(field, &format!(" {attribute}=\""), '"').into_iter().next();
        let name = of("name").expect("a name");
        if name == "viewport" || name == "color-scheme" {
            continue;
        }
        assert!(parameters[name].is_object(), "{name} is no parameter");
        let told = parameters[name].to_string();
        match of("placeholder") {
            Some(default) => assert!(told.contains(&format!("[default: {default}]")), "{name}: {default}; {told}"),
            None => assert!(!told.contains("[default"), "{name}: {told}"),
        }
    }
}

#[test]
fn the_script_finds_what_it_looks_for_in_the_page() {
    let script = scripts();
    for id in between(&script, "at(\"", '"').into_iter().chain(between(&script, "copyOf(\"", '"')) {
        assert!(piece("/ui").contains(&format!(" id=\"{id}\"")), "{id}");
    }
}
