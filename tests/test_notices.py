"""Which test fails when a setting or a number is ignored or changed: one table, kept complete.

`SETTINGS` names, for every setting, the test of what it does; besides, `test_effects.py` changes
every one of them. `CONSTANTS` has every name in capitals of the packages that decide a number: its
value, written down once more (None: what is compared stands in the test), and a test of what it
does. `NUMBERS` lists what decides a number and has no name. A new setting or constant without a
line here fails.
"""

import ast
import functools
from pathlib import Path

import pytest

from tevq import config

TESTS, PACKAGE = Path(__file__).parent, Path(config.__file__).parent
DECIDING = ("data", "models", "train", "evaluate", "report/stats.py", "report/claims.py")

HAND, FLOW, EFFECT = "test_by_hand", "test_flow", "test_effects"
CHANGED = f"{EFFECT}::test_a_setting_that_is_changed_changes_what_it_should"
LOSS = f"{HAND}::test_the_loss_of_stage1_and_every_gradient"
PRESETS = f"{HAND}::test_every_preset_samples_as_officially_and_weighs_as_the_paper"
UPDATE = f"{HAND}::test_an_update_of_stage2"
SCORED = f"{FLOW}::test_evaluated_is_what_its_labels_say"
GUARDED = "test_guards::test_measured_numbers_are_the_recorded_ones"
SIZES = "test_settings::test_paper_preset_has_the_published_sizes"
GRAMMAR = f"{HAND}::test_the_grammar_is_the_one_written_here"
WORDS = f"{HAND}::test_the_words_of_a_caption_are_what_is_seen"
PINNED = "test_scenes::test_the_hash_is_pinned"

SETTINGS = {
    "precision": f"{FLOW}::test_trainings_ask_for_the_precision_of_their_settings",
    "data.source": f"{FLOW}::test_every_step_sees_its_own_items",
    "data.train": SIZES, "data.val": SIZES, "data.test": SIZES,
    "data.seed": "test_scenes::test_seeds_and_splits_are_different_draws",
    "data.scene": "test_render::test_scenes_of_other_sizes_are_the_same_picture",
    "data.words": "test_official::test_numerals_are_other_words_for_the_same_tokens",
    "classifier.architecture":
        "test_official::test_the_official_classifier_is_a_resnet18_with_two_heads",
    "classifier.width": f"{HAND}::test_the_network_of_the_classifier_by_hand",
    "classifier.steps": f"{HAND}::test_the_training_of_the_classifier",
    "classifier.batch": f"{HAND}::test_the_training_of_the_classifier",
    "classifier.lr": f"{HAND}::test_the_training_of_the_classifier",
    "classifier.seed": "test_measures::test_the_second_judge_is_another_network_trained_apart",
    "stage1.downsample": "test_settings::test_te_differs_from_sc_in_the_penalty_only",
    "stage1.quantizer": "test_extending::test_a_new_quantizer_is_one_entry",
    "stage1.orthogonality": LOSS,
    "stage1.stride": "test_vqgan::test_shapes_and_decoding_of_codes",
    "stage1.channels": "test_vqgan::test_official_sizes_have_the_official_parameter_counts",
    "stage1.multipliers": "test_vqgan::test_the_last_multiplier_repeats_for_larger_strides",
    "stage1.encoder_blocks": "test_vqgan::test_official_sizes_have_the_official_parameter_counts",
    "stage1.decoder_blocks": "test_vqgan::test_official_sizes_have_the_official_parameter_counts",
    "stage1.padding": f"{HAND}::test_borders_of_the_encoder_and_of_the_decoder",
    "stage1.codes": SIZES, "stage1.code_dim": SIZES,
    "stage1.codebook_start": f"{HAND}::test_the_codebook_learns_by_gradients_alone",
    "stage1.warmup_steps": f"{HAND}::test_the_warm_up_knows_no_codes",
    "stage1.beta": LOSS,
    "stage1.perceptual": f"{HAND}::test_lpips_sees_images_in_minus_one_to_one",
    "stage1.perceptual_weight": LOSS,
    "stage1.disc_start": "test_numbers::test_the_start_of_the_discriminator_is_announced",
    "stage1.disc_weight": LOSS,
    "stage1.disc_channels": f"{HAND}::test_the_discriminator_has_the_official_shape",
    "stage1.disc_layers": f"{HAND}::test_the_discriminator_has_the_official_shape",
    "stage1.steps": SIZES, "stage1.batch": SIZES,
    "stage1.lr": f"{FLOW}::test_learning_rates_arrive_at_every_step",
    "stage1.decay": f"{HAND}::test_the_rate_of_stage1_falls_to_a_tenth",
    "stage1.merged_to": "test_rivals::test_merged_codes_are_groups_of_the_old_ones",
    "stage1.levels": "test_rivals::test_fsq_rounds_every_channel",
    "stage1.attention": "test_rivals::test_an_encoder_without_context_sees_near_pixels_only",
    "stage1.normalization": "test_rivals::test_position_norm_hears_of_no_other_position",
    "stage1.penalty_on":
        "test_rivals::test_gradients_on_used_and_unused_codes_add_up_to_those_on_all",
    "stage1.revive_every":
        "test_rivals::test_dead_codes_are_put_on_outputs_of_the_batch_until_the_last_fifth",
    "stage1.frozen_lengths": "test_rivals::test_ages_count_steps_and_lengths_stay",
    "stage1.causal": "test_rivals::test_penalties_by_a_second_route",
    "stage1.shift_features": "test_rivals::test_penalties_by_a_second_route",
    "stage1.shift_decoding": "test_rivals::test_penalties_by_a_second_route",
    "stage2.architecture": "test_official::test_the_official_size_has_10_73_million_parameters",
    "stage2.captions": "test_official::test_every_epoch_has_its_captions",
    "stage2.dim": "test_transformer::test_sizes", "stage2.depth": "test_transformer::test_sizes",
    "stage2.heads": "test_transformer::test_sizes",
    "stage2.head_dim": "test_transformer::test_sizes",
    "stage2.window":
        "test_transformer::test_neighbours_are_the_known_codes_around_the_predicted_position",
    "stage2.neighbours": "test_transformer::test_neighbours_are_all_that_is_known_within_reach",
    "stage2.directions": "test_training::test_turns_keep_their_share_at_every_step",
    "stage2.t2i_share": "test_training::test_turns_keep_their_share_at_every_step",
    "stage2.target_weight": UPDATE,
    "stage2.fraction": "test_training::test_of_a_third_of_the_scenes_only_a_third_is_encoded",
    "stage2.steps": SIZES, "stage2.batch": SIZES,
    "stage2.optimizer": "test_muon::test_matrices_of_the_blocks_and_nothing_else",
    "stage2.muon_lr": f"{FLOW}::test_learning_rates_arrive_at_every_step",
    "stage2.lr": f"{FLOW}::test_learning_rates_arrive_at_every_step", "stage2.beta2": UPDATE,
    "stage2.warmup_steps": f"{HAND}::test_schedules_of_stage2_by_hand",
    "stage2.schedule": f"{HAND}::test_schedules_of_stage2_by_hand", "stage2.clip": UPDATE,
    "stage2.probe_every": "test_training::test_learning_curve_has_both_splits_and_all_cases",
    "stage2.probe_scenes": f"{FLOW}::test_curves_are_painted_at_random_and_written_greedily",
    "stage2.until": "test_training::test_until_ends_stage_2_early_and_the_rate_falls_from_there",
    "measures.val":
        "test_measures::test_every_point_of_the_grid_is_there_once_for_both_splits_and_judges",
    "measures.test":
        "test_measures::test_official_and_greedy_points_are_the_scenes_of_the_evaluation",
    "measures.replaced": "test_measures::test_replaced_codes",
    "evaluation.scenes": "test_training::test_evaluation_counts_every_scene_of_both_splits",
    "evaluation.temperature": SCORED, "evaluation.top_k": SCORED,
    "evaluation.batch": "test_training::test_a_sample_does_not_depend_on_its_batch",
}

CONSTANTS = {
    "data.captions.COLOURS": (("white", "red", "green", "blue"), WORDS),
    "data.captions.PLACES": (
        ("upper left", "upper right", "lower left", "lower right", "center"), WORDS),
    "data.captions.CENTER": (None, WORDS),
    "data.captions.UNUSED": (255, "test_scenes::test_unused_slots_come_last"),
    "data.captions.TEMPLATES": (None, GRAMMAR), "data.captions.PLACE_WORDS": (None, GRAMMAR),
    "data.captions.CONNECTORS": (None, GRAMMAR), "data.captions.MAX_CLAUSES": (4, GRAMMAR),
    "data.captions.CHOICES": (None, "test_captions::test_written_captions_are_read_back_exactly"),
    "data.captions.SPECIALS": (("<pad>", "<bos>", "<eos>"), GRAMMAR),
    "data.captions.PAD": (None, "test_captions::test_example_by_hand"),
    "data.captions.BOS": (None, "test_captions::test_example_by_hand"),
    "data.captions.EOS": (None, "test_captions::test_example_by_hand"),
    "data.captions._SYNONYMS": (
        None, "test_captions::test_writer_and_paraphrases_know_the_same_sixteen_captions"),
    "data.captions._WORDS": (None, GRAMMAR), "data.captions._ID": (None, GRAMMAR),
    "data.captions.MOST_CLASSES": (200, "test_source::test_any_number_of_classes"),
    "data.captions._LONGEST_CLAUSE": (None, GRAMMAR), "data.captions.LENGTH": (None, GRAMMAR),
    "data.render.IMAGE_SIZE": (
        64, f"{HAND}::test_items_are_28_pixels_two_from_the_edges_of_their_cell"),
    "data.render.CELL": (
        32, f"{HAND}::test_items_are_28_pixels_two_from_the_edges_of_their_cell"),
    "data.render.RGB": (((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)), WORDS),
    "data.render.OFFSETS": (
        None, f"{HAND}::test_items_are_28_pixels_two_from_the_edges_of_their_cell"),
    "data.scenes.CASES": (("quad1", "quad2", "quad3", "quad4", "center"),
                          "test_scenes::test_cases_are_exactly_balanced_and_mean_what_they_say"),
    "data.scenes.SPLITS": (("train", "val", "val_seen", "test", "test_seen"),
                           f"{FLOW}::test_every_step_sees_its_own_items"),
    "data.scenes.SLOTS": (4, PINNED),
    "data.scenes.HELD_OUT": (
        None, f"{HAND}::test_held_out_combinations_are_the_ten_written_here"),
    "data.scenes._DRAWS": (32, PINNED),
    "data.source.ITEM_SIZE": (28, "test_source::test_digits_have_a_margin_and_full_range"),
    "data.source.PARTS": (("train", "test"), f"{FLOW}::test_every_step_sees_its_own_items"),
    "data.source.LEAST_CLASSES": (4, "test_source::test_bad_folders_end_in_one_line"),
    "data.source._NUMBERS": (None, WORDS),
    "data.source._GARMENTS": (
        ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
         "boot"), "test_captions::test_official_shirt_needs_a_space"),
    "data.source._TEST_EVERY": (5, "test_source::test_single_level_folders_have_a_fixed_split"),
    "data.source._LEAST": (
        {"train": 1, "test": 2},
        "test_source::test_a_rare_class_is_in_both_halves_of_the_test_items"),
    "data.source._IDX_PREFIXES": (
        {"train": ("train",), "test": ("t10k", "test")}, "test_source::test_idx_files_by_path"),
    "data.source.OFFICIAL": (
        None, "test_source::test_other_files_in_the_place_of_mnist_are_named"),
    "data.source.SOURCES": (None, "test_source::test_a_new_source_is_one_entry"),
    "models.cpu_kernels.EPSILON": (
        1e-6, "test_vqgan::test_norm_equals_group_norm_with_its_gradients"),
    "models.cpu_kernels.FEW_PIXELS": (
        None, "test_vqgan::test_norm_equals_group_norm_with_its_gradients"),  # of speed only
    "models.cpu_kernels.BLOCK": (None, "test_transformer::test_blocks_cover_all_positions_once"),
    "models.cpu_kernels.LONGEST": (
        None, "test_transformer::test_training_attention_equals_evaluation_attention"),
    "models.losses.VGG_FILE": ("vgg16-397923af.pth",
                               "test_losses::test_lpips_without_its_weights_names_file_and_alternative"),
    "models.official.PATTERNS": (
        ("full", "row", "column", "window"), "test_official::test_the_layers_take_turns"),
    "models.quantizer.QUANTIZERS": (None, "test_extending::test_a_new_quantizer_is_one_entry"),
    "models.sampling.MASK": (
        2**32 - 1, f"{HAND}::test_random_numbers_of_sampling_in_whole_numbers_of_python"),
    "models.transformer.DIRECTIONS": (
        ("t2i", "i2t"), "test_transformer::test_loss_equals_a_loop_over_targets"),
    "models.transformer.ARCHITECTURES": (
        None, "test_official::test_without_the_switches_the_networks_are_our_own"),
    "models.vqgan.DOWNSAMPLERS": (
        None, "test_vqgan::test_official_sizes_have_the_official_parameter_counts"),
    "train.classifier.LOG_EVERY": (100, GUARDED),
    "train.classifier.SHIFT": (2, f"{HAND}::test_the_training_of_the_classifier"),
    "models.vqgan.NORMALIZATIONS": (
        None, "test_rivals::test_position_norm_hears_of_no_other_position"),
    "models.rivals.ENTROPY": (0.1, "test_rivals::test_lfq_has_signs_and_its_entropies"),
    "train.regularizers.WINDOW": (100, "test_rivals::test_ages_count_steps_and_lengths_stay"),
    "train.regularizers.LAST": (
        0.8, "test_rivals::test_dead_codes_are_put_on_outputs_of_the_batch_until_the_last_fifth"),
    "train.progress.EVERY": (1.0, "test_progress::test_one_line_stays_of_a_training"),
    "train.progress.SOON": (
        5.0, "test_progress::test_nothing_is_told_before_it_can_be_known"),
    "train.progress.SHARE": (
        0.01, "test_progress::test_interrupts_and_pictures_change_no_training"),
    "evaluate.metrics.GRID": (
        None,
        "test_measures::test_every_point_of_the_grid_is_there_once_for_both_splits_and_judges"),
    "evaluate.measures.NEIGHBOURS": (3, "test_measures::test_precision_and_recall_by_loops"),
    "evaluate.measures.NATS": (("val", "val_seen", "test", "test_seen"),
                               "test_measures::test_nats_are_the_sum_over_codes_one_by_one"),
    "train.cuda_graph.EAGER": (
        None, "test_cuda_graph::test_a_recorded_step_takes_new_inputs_and_returns_new_results"),
    "train.loop.CHECK_EVERY": (
        20, "test_numbers::test_it_stops_with_step_seed_and_an_intact_checkpoint"),
    "train.muon.STEPS": (5, f"{HAND}::test_two_steps_of_muon"),
    "train.muon.QUINTIC": ((3.4445, -4.775, 2.0315), f"{HAND}::test_two_steps_of_muon"),
    "train.stage1.LOG_EVERY": (
        20, "test_training::test_metrics_record_the_health_of_the_codebook_and_the_discriminator"),
    "train.stage1.KMEANS_VECTORS": (
        20_000, f"{HAND}::test_codes_start_from_features_of_the_first_batches"),
    "train.stage2.LOG_EVERY": (23, "test_training::test_turns_keep_their_share_at_every_step"),
    "train.stage2.LOGGED": (("loss", "text_loss", "image_loss"), f"{GUARDED}"),
    "train.curve.TASKS": ({"both": ("t2i", "i2t"), "t2i": ("t2i",), "i2t": ("i2t",)},
                          "test_training::test_turns_keep_their_share_at_every_step"),
    "train.curve.GREEDY": (
        "t2i_greedy", "test_training::test_until_ends_stage_2_early_and_the_rate_falls_from_there"),
    "train.curve.SPLITS": (
        ("val", "val_seen"), f"{FLOW}::test_curves_are_painted_at_random_and_written_greedily"),
    "evaluate.evaluate.PROBE_ITEMS": (
        100, f"{FLOW}::test_seeds_reach_the_order_of_the_data_and_sampling"),
    "evaluate.evaluate.PER_CASE": (4, "test_examples::test_the_first_scenes_of_every_case"),
    "evaluate.evaluate.RECORD": (
        "examples.json.gz", "test_examples::test_pictures_come_back_as_they_were_kept"),
    "evaluate.evaluate.PICTURES": (
        "examples.png", "test_examples::test_pictures_come_back_as_they_were_kept"),
    "evaluate.evaluator.CHUNK": (
        None, f"{FLOW}::test_how_many_are_handled_at_a_time_changes_nothing"),
    "evaluate.metrics.INK_LEVEL": (0.2, f"{HAND}::test_ink_is_twelve_pixels_above_a_fifth"),
    "evaluate.metrics.INK_PIXELS": (12, f"{HAND}::test_ink_is_twelve_pixels_above_a_fifth"),
    "evaluate.metrics.SPLITS": (("test", "test_seen"), SCORED),
    "evaluate.metrics.DECODINGS": (("sampled", "greedy"), SCORED),
    "evaluate.metrics.IMAGE_METRICS": (
        ("digit", "colour", "digit_colour", "empty", "scene"),
        "test_metrics::test_image_scores_by_hand"),
    "evaluate.metrics.CAPTION_METRICS": (
        ("official_digit", "digit", "slot_precision", "slot_recall", "slot_f1", "exact",
         "well_formed"), "test_metrics::test_caption_scores_by_hand"),
    "report.claims.LEARNED": (0.5, "test_claims::test_a_generator_below_the_mark_is_named_and_one_"
                                   "that_learned_nothing_decides_nothing"),
    "report.claims.SETTLED": (0.9, "test_claims::test_a_generator_below_the_mark_is_named_and_one_"
                                   "that_learned_nothing_decides_nothing"),
    "report.claims.MARGIN": (0.03, "test_claims::test_no_difference_is_two_one_sided_tests"),
    "report.claims.BASELINES": (
        ("sc", "mb", "mp", "cb"), "test_claims::test_claims_by_a_second_route"),
    "report.claims.SEEN": (
        {"t2i": ("sampled", "digit"), "i2t": ("greedy", "digit")},
        "test_claims::test_generators_that_learned_nothing_are_undecided"),
    "report.claims.TITLES": (
        {"t2i": "text→image", "i2t": "image→text"}, "test_claims::test_claims_by_a_second_route"),
    "report.claims.SECTIONS": (
        {"t2i": "4.1", "i2t": "4.2"}, "test_claims::test_claims_by_a_second_route"),
}

NUMBERS = {
    "seed of a cell, in the order of the data":
        f"{FLOW}::test_seeds_reach_the_order_of_the_data_and_sampling",
    "seed of a scene's sampling": SCORED,
    "seed of the features and of k-means":
        f"{HAND}::test_codes_start_from_features_of_the_first_batches",
    "float32 in every evaluation":
        f"{FLOW}::test_networks_are_evaluated_in_float32_whatever_trains_them",
    "items of train, val (first half), test (second half)":
        f"{FLOW}::test_every_step_sees_its_own_items",
    "held-out rule: val and test only, never in train and _seen":
        f"{HAND}::test_held_out_combinations_are_the_ten_written_here",
    "sampled and greedy under their own names": SCORED,
    "commitment weight on the features' term, codebook term with 1": LOSS,
    "lambda 10 of equation 5, K^2 below": LOSS,
    "straight-through gradient": "test_quantizer::test_gradient_passes_straight_through",
    "no moving averages of codes": f"{HAND}::test_the_codebook_learns_by_gradients_alone",
    "no moving averages of weights":
        f"{FLOW}::test_what_is_kept_are_the_weights_after_the_last_step",
    "hinge loss, halved": "test_losses::test_discriminator_shape_and_hinge",
    "adaptive weight: ratio, 1e-4, at most 1e4":
        f"{HAND}::test_small_gradients_do_not_blow_up_the_adaptive_weight",
    "adaptive weight: no gradient":
        "test_losses::test_adaptive_weight_is_the_ratio_of_gradient_norms",
    "LPIPS: VGG, images in [-1, 1], mean": f"{HAND}::test_lpips_sees_images_in_minus_one_to_one",
    "our perceptual distance":
        "test_losses::test_feature_distance_is_the_difference_of_unit_features",
    "betas of Adam, Stage 1: 0.5, 0.9": LOSS, "betas of Adam, Stage 2: 0.9, beta2": UPDATE,
    "momentum of Muon 0.95, Nesterov, sqrt(rows / columns)": f"{HAND}::test_two_steps_of_muon",
    "k-means: ++, one start, ten rounds": f"{HAND}::test_codes_start_at_ten_rounds_of_kmeans",
    "padding of strided convolutions: right and below":
        f"{HAND}::test_strided_convolution_is_padded_right_and_below",
    "padding of the decoder: zeros": f"{HAND}::test_borders_of_the_encoder_and_of_the_decoder",
    "blur: 1 4 6 4 1": "test_vqgan::test_blur_is_scipy_convolution_then_every_second_pixel",
    "cosine of Stage 1, to a tenth": f"{HAND}::test_the_rate_of_stage1_falls_to_a_tenth",
    "schedules of Stage 2: last 40 %, six restarts":
        f"{HAND}::test_schedules_of_stage2_by_hand",
    "classifier: weight decay 0.01, warm-up 15 %, at least a hundredth":
        f"{HAND}::test_the_training_of_the_classifier",
    "classifier: dropout 0.3": f"{HAND}::test_the_network_of_the_classifier_by_hand",
    "masks of our transformer": "test_transformer::test_no_logit_sees_its_target_or_later",
    "masks of the official one": "test_official::test_codes_see_what_is_drawn",
    "(given + 7 generated) / 8": "test_transformer::test_loss_equals_a_loop_over_targets",
    "lambda, beta, weights, top k, temperature of the presets": PRESETS,
    "top k and temperature in choices": "test_sampling::test_distribution_is_the_softmax",
    "equation 2: windows of each measure":
        "test_equivariance::test_patch_encoder_is_perfect_on_the_grid_and_only_there",
    "kappa and feature error": "test_equivariance::test_kappa_and_error_by_hand",
    "L1 of Table 3 in [0, 1]": f"{FLOW}::test_reconstructions_are_measured_in_zero_to_one",
    "95 % of t-intervals": "test_stats::test_t_interval_is_scipys_and_known_for_three",
    "sample SD, n - 1": "test_stats::test_mean_and_sd",
    "three runs behind a published mean": "test_stats::test_contrast_is_welchs_interval",
    "sign-flip test, both sides": "test_stats::test_sign_flip_against_brute_force",
    "Holm": "test_stats::test_holm_known_values",
    "quantiles, draws and cases of the bootstrap": GUARDED,
    "4000 draws of the bootstrap from seed 0":
        f"{HAND}::test_the_bootstrap_draws_4000_times_from_seed_0",
}


@functools.cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def constants() -> dict[str, ast.expr]:
    """Dotted name below tevq -> the expression behind it, of every name in capitals."""
    found = {}
    for path in (p for part in DECIDING for p in sorted((PACKAGE / part).rglob("*.py"))
                 or [PACKAGE / part]):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = (line.targets if isinstance(line, ast.Assign) else
                       [line.target] if isinstance(line, ast.AnnAssign) else [])
            for target in targets:
                names, value = [target], line.value
                values = [value]
                if isinstance(target, ast.Tuple):
                    names = target.elts
                    values = (value.elts if isinstance(value, ast.Tuple) else [value] * len(names))
                for name, own in zip(names, values, strict=True):
                    if isinstance(name, ast.Name) and name.id.isupper():
                        found[f"{module}.{name.id}"] = own
    return found


def test_the_table_names_every_setting_and_every_constant():
    assert set(SETTINGS) == set(config.names())
    assert set(CONSTANTS) == set(constants())
    assert len(NUMBERS) > 30


@pytest.mark.parametrize("table", [SETTINGS, {k: v[1] for k, v in CONSTANTS.items()}, NUMBERS],
                         ids=["settings", "constants", "numbers"])
def test_the_tests_of_the_table_are_there(table):
    for what, test in table.items():
        file, name = test.split("::")
        assert name in functions(file), f"{what}: no {test}"


@pytest.mark.parametrize("name", [name for name, (value, _) in CONSTANTS.items()
                                  if value is not None])
def test_a_constant_is_what_the_table_says(name):
    """Read from the file: other tests may have set it to a smaller number."""
    assert ast.literal_eval(constants()[name]) == CONSTANTS[name][0]
