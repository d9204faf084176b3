"""Which files of tests take longest, so that they are run first, and which tests go apart."""

from __future__ import annotations

from typing import Final

#: Files of tests that take longest, in seconds on one idle core: with `--dist loadfile` the workers
#: begin with these, and the short ones at the end even them out. A test that is named goes to
#: whichever worker is free, wherever the rest of its file is.
LONGEST: Final = {
    "test_embedded.py": 450,
    "reference/test_vllm_engine.py": 240,
    "test_embedded.py::test_a_cut_prompt_is_found_and_its_window_measured"
    "[150-front,hidden-350]": 90,
    "test_embedded.py::test_a_router_that_sends_some_requests_elsewhere_is_found": 90,
    "test_embedded.py::test_the_demo_tells_its_two_hosts_apart": 80,
    "scoring/test_thinking_embedded.py": 100,
    "reference/test_add.py": 90,
    "checks/test_reported_logprobs.py": 30,
    "checks/test_length.py": 25,
    "checks/test_sampling.py": 35,
    "test_audit.py": 50,
    "safety/test_keys.py": 40,
    "files/test_malformed.py": 28,
    "fleet/test_side_by_side.py": 35,
    "verdict/test_theorem.py": 45,
    "checks/test_template_completions.py": 30,
    "checks/test_request_strata.py": 30,
    "checks/test_sampling_stored_replies.py": 25,
    "verdict/test_decide.py": 25,
    "scoring/test_reasoning.py": 25,
    "test_checks.py": 25,
    "lab/test_bench_left_out.py": 25,
    "cli/test_commands.py": 20,
}
