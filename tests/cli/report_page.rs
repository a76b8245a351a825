//! `report`: the page of a finished run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use attrflow_engine::provenance::manifest;

use crate::project::Project;

#[test]
fn a_run_is_one_page_with_its_manifest_inside() {
    let project = Project::finished();
    let report = |arguments: &[&str]| {
        let ran = project.attrflow([&["report"], arguments].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    };
    assert!(report(&["pipelines/demo.toml"]).starts_with("results/demo/report.html   "));
    let page = fs_err::read_to_string(project.path("results/demo/report.html")).unwrap();
    for name in ["grin", "pizza"] {
        assert!(page.contains(name), "{name}");
    }
    assert!(page.contains("What each worker computed when"));
    // The same run, the same bytes.
    report(&["demo:last", "-o", "again.html"]);
    assert!(fs_err::read_to_string(project.path("again.html")).unwrap() == page);
    let manifest = manifest::list(&project.path("cache/runs/demo")).remove(0);
    assert_eq!(report(&["--extract", "again.html"]), fs_err::read_to_string(manifest).unwrap());
    // A run is compared with itself.
    report(&["demo:last", "demo:last", "-o", "both.html"]);
    assert!(fs_err::read_to_string(project.path("both.html")).unwrap().contains("grin"));
    project.write("no.html", "<html></html>");
    let ran = project.attrflow(["report", "--extract", "no.html"]);
    assert!(ran.code == 1 && ran.err.contains("no.html: no manifest in this file"), "{ran:?}");
    assert!(!project.path("again.html.partial").exists());
}

const PAGE: &str = "results/demo/report.html";

fn page(project: &Project) -> String {
    fs_err::read_to_string(project.path(PAGE)).unwrap()
}

#[test]
fn a_run_writes_its_report_when_it_ends() {
    let project = Project::finished();
    let newest = || manifest::list(&project.path("cache/runs/demo")).remove(0);
    // Everything is cached, and in the end this is known without a plan.
    for _ in 0..4 {
        let ran = project.attrflow(["run", "pipelines/demo.toml", "--report"]);
        assert!(ran.code == 0 && ran.out.ends_with(&format!("report: {PAGE}\n")), "{ran:?}");
        let name = newest().file_name().unwrap().to_string_lossy().into_owned();
        assert!(page(&project).contains(&name), "{name}");
        fs_err::remove_file(project.path(PAGE)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let ran = project.run(&["--report", "--force", "data"]);
    let last = ran.json().pop().unwrap();
    assert!(last["report"].as_str().unwrap().ends_with(PAGE), "{last}");
    let written = page(&project);
    assert!(written.contains("What each worker computed when"));
    project.attrflow(["report", "pipelines/demo.toml"]);
    assert!(page(&project) == written, "the same page later");

    let manifest = newest();
    let ran = project.attrflow(["run", "--from", manifest.to_str().unwrap(), "--report"]);
    assert!(ran.code == 0 && ran.out.contains(&format!("report: {PAGE}\n")), "{ran:?}");
    // A page that cannot be written is no failure of the run.
    fs_err::remove_file(project.path(PAGE)).unwrap();
    fs_err::create_dir(project.path(PAGE)).unwrap();
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--report"]);
    assert!(ran.code == 0 && ran.err.contains("the report was not written: "), "{ran:?}");
}

#[test]
fn a_failed_run_has_a_report() {
    let project = Project::new(1);
    let fails = "[stages.a]\nkind = \"command\"\nparams = { argv = [\"false\"], outputs = { o = \"o\" } }\n";
    project.write("pipelines/p.toml", fails);
    let ran = project.attrflow(["run", "pipelines/p.toml", "--device", "cpu", "--report"]);
    assert!(ran.code == 1 && ran.out.ends_with("report: results/p/report.html\n"), "{ran:?}");
    let page = fs_err::read_to_string(project.path("results/p/report.html")).unwrap();
    assert!(page.contains("This run failed."));
}

#[test]
fn an_archive_has_the_pictures_in_full_size() {
    let project = Project::finished();
    let archive = |arguments: &[&str]| {
        let ran = project.attrflow([&["report", "--zip"], arguments].concat());
        assert!(ran.code == 0 && ran.out.starts_with("results/demo/report.zip   "), "{ran:?}");
        let bytes = fs_err::read(project.path("results/demo/report.zip")).unwrap();
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes.clone())).unwrap();
        let mut files = BTreeMap::new();
        for number in 0..zip.len() {
            let mut file = zip.by_index(number).unwrap();
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            files.insert(file.name().to_owned(), content);
        }
        (bytes, files)
    };
    let (bytes, mut files) = archive(&[]);
    assert!(archive(&[]).0 == bytes, "the same run, the same bytes");
    let page = String::from_utf8(files.remove("report.html").unwrap()).unwrap();
    let links = page.split("<a href=\"pictures/").skip(1).map(|rest| rest.split('"').next().unwrap());
    let links: BTreeSet<String> = links.map(|name| format!("pictures/{name}")).collect();
    assert!(links.iter().eq(files.keys()) && files.len() == 8, "two queries and six images: {links:?}");
    let drawn = fs_err::read(project.result("generate/grin/images/0.png")).unwrap();
    assert!(files.values().any(|content| *content == drawn));

    let (_, redacted) = archive(&["--redact"]);
    assert_eq!(redacted.len(), 9);
    let pixels = |png: &[u8]| image::load_from_memory(png).unwrap().to_rgb8();
    let mut pictures = redacted.iter().filter(|(name, _)| name.ends_with(".png"));
    assert!(pictures.any(|(_, content)| pixels(content) == pixels(&drawn)));
}

#[test]
#[ignore = "writes a page for `make test-browser`"]
fn pages_for_a_browser() {
    let folder = std::env::var("ATTRFLOW_WRITE_TO").expect("ATTRFLOW_WRITE_TO names a folder");
    let project = Project::finished();
    let ran = project.attrflow([
        "report",
        "pipelines/demo.toml",
        "--bottom",
        "2",
        "-o",
        &format!("{folder}/run.html"),
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
}
