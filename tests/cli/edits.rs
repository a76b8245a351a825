//! What an edit runs again: what it must, and nothing else.

use crate::project::{Project, files};
use crate::run::STAGES;

#[test]
fn a_parameter_runs_its_readers_and_no_others() {
    let cases: [(&str, &[&str]); 4] = [
        ("loss.time_samples=4", &["influence[grin]", "influence[pizza]", "pretrain_loss"]),
        ("unlearn.lr=0.002", &["influence[grin]", "influence[pizza]", "unlearn[grin]", "unlearn[pizza]"]),
        ("influence.top=4", &["influence[grin]", "influence[pizza]"]),
        // The row that a batch holds changes the rounding of a sum alone, but it changes it.
        (
            "fisher.seed=1",
            &["fisher", "influence[grin]", "influence[pizza]", "unlearn[grin]", "unlearn[pizza]"],
        ),
    ];
    let project = Project::finished();
    for (set, computed) in cases {
        assert_eq!(project.run(&["--set", set]).computed(), computed, "{set}");
        // And back: both results stay in the cache.
        assert_eq!(project.run(&[]).reused(), STAGES, "{set}");
    }
}

#[test]
fn a_change_of_the_table_alone_computes_no_loss_again() {
    let project = Project::finished();
    let ran = project.run(&["--set", "influence.top=4"]);
    assert_eq!(ran.events("unit_finished", "unit"), [""; 0]);
}

#[test]
fn a_query_runs_its_own_chain() {
    let project = Project::finished();
    project.edit("configs/demo.toml", "an emoji of grinning face", "an emoji of winking face");
    let chain = ["generate[grin]", "influence[grin]", "unlearn[grin]"];
    assert_eq!(project.run(&[]).computed(), chain);

    let text = fs_err::read_to_string(project.path("configs/demo.toml")).unwrap();
    let query = "\n[[queries]]\nname = \"star\"\ncaption = \"a yellow star\"\nseed = 5\n";
    project.write("configs/demo.toml", text + query);
    let ran = project.run(&[]);
    assert_eq!(ran.computed(), ["generate[star]", "influence[star]", "unlearn[star]"]);
    assert_eq!(ran.reused(), STAGES);
    assert!(project.result("influence/star/top.csv").is_file());
}

#[test]
fn a_comment_and_an_order_of_keys_run_nothing() {
    let project = Project::finished();
    project.edit(
        "configs/demo.toml",
        "steps = 4\nguidance_scale = 3.0",
        "guidance_scale = 3.0 # mild\nsteps = 4",
    );
    project.edit("configs/demo.toml", "batch_size = 4\nlr = 0.001", "batch_size = 4\nlr = 1e-3");
    assert_eq!(project.run(&[]).reused(), STAGES);
}

#[test]
fn a_caption_of_the_data_set_runs_what_reads_it() {
    let project = Project::finished();
    // Beyond the captions that are used: the bytes of the file change, the latents' do not.
    let text = fs_err::read_to_string(project.path("data/demo/captions.json")).unwrap();
    project.write("data/demo/captions.json", text.replacen("CLDR names", "CLDR  names", 1));
    let ran = project.run(&[]);
    assert_eq!(ran.computed(), ["data", "influence[grin]", "influence[pizza]", "latents"]);
}

#[test]
fn a_target_runs_what_it_needs() {
    let project = Project::finished();
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    fs_err::remove_dir_all(project.path("results")).unwrap();
    assert_eq!(project.run(&["--target", "generate[grin]"]).computed(), ["data", "generate[grin]"]);
    let ran = project.run(&["--target", "generate", "--target", "latents"]);
    assert_eq!(ran.computed(), ["generate[pizza]", "latents"]);
    assert_eq!(ran.reused(), ["data", "generate[grin]"]);
    assert!(!project.result("influence").exists());
}

#[test]
fn force_computes_and_equal_bytes_stop_there() {
    let project = Project::finished();
    let before = project.results();
    let ran = project.run(&["--force", "fisher"]);
    assert_eq!(ran.computed(), ["fisher"]);
    assert_eq!(ran.events("unit_finished", "stage"), ["fisher"; 3]);
    assert_eq!(project.results(), before);
    assert_eq!(project.run(&["--force", "generate"]).computed(), ["generate[grin]", "generate[pizza]"]);
}

#[test]
fn removed_results_are_shown_again_and_removed_objects_computed_again() {
    let project = Project::finished();
    let before = project.results();
    fs_err::remove_dir_all(project.path("results/demo/influence")).unwrap();
    assert_eq!(project.run(&[]).reused(), STAGES);
    assert_eq!(project.results(), before);

    fs_err::remove_dir_all(project.path("cache/objects")).unwrap();
    assert_eq!(project.run(&[]).computed(), STAGES);
    assert_eq!(project.results(), before);
}

#[test]
fn a_damaged_index_is_told_and_costs_its_own_stage_alone() {
    let project = Project::finished();
    let entries = files(&project.path("cache/recipes-v1"));
    let of_data =
        |path: &&std::path::PathBuf| fs_err::read_to_string(path).unwrap().contains("\"kind\":\"download\"");
    let entry = entries.values().find(of_data).unwrap();
    fs_err::write(entry, "{ \"recipe\"").unwrap();
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("/cache/recipes-v1/") && ran.err.contains(" is damaged: "), "{ran:?}");
    assert!(ran.out.contains("1 ran, 9 reused"), "{ran:?}");
}
