"""A saved SAE says where it was trained; another model, sampler, branch or site is told by name."""

from typing import Any

import pytest
from diffusers import EulerDiscreteScheduler
from tiny_pipeline import tiny_pipeline, tiny_text_to_image

from difflens.stages.sae import trained_on
from difflens.store.artifacts import require_equal
from difflens.store.errors import ArtifactMismatchError


def described(*, module: str = "mid_block", branch: str = "cond", euler: bool = False, **settings: Any) -> Any:
    pipeline = tiny_pipeline()
    if euler:
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    return trained_on(
        tiny_text_to_image(pipeline, **settings), {"module": module, "tensor": "output", "branch": branch}
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"module": "up_blocks.0"}, "site.module: mid_block != up_blocks.0"),
        ({"branch": "uncond"}, "site.branch: cond != uncond"),
        ({"guidance": 2.0}, "model.guidance: 3 != 2"),
        ({"euler": True}, "model.scheduler.class: DDIMScheduler != EulerDiscreteScheduler"),
        ({"steps": 5}, "model.timesteps"),
    ],
)
def test_an_sae_of_elsewhere_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    own = described()
    require_equal(own, described(name="other", micro_batch=1), "the SAE")
    with pytest.raises(ArtifactMismatchError) as error:
        require_equal(own, described(**changed), "the SAE")
    assert words in str(error.value) and error.value.exit_code == 2
