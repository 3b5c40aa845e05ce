"""The topology tables: counts, symmetry and the tree."""

import numpy as np

from animate_jax.pose import skeleton as sk


def test_limbs_and_colours_are_openpose():
    assert len(sk.LIMBS) == 17 and len(set(sk.LIMBS)) == 17
    assert sk.LIMBS[0] == (1, 2) and sk.LIMBS[12] == (1, 0) and sk.LIMBS[16] == (15, 17)
    assert sk.BODY_COLOURS.shape == (18, 3)
    assert len(np.unique(sk.BODY_COLOURS, axis=0)) == 18
    # Fully saturated and bright: one channel is 255, one is 0.
    assert (sk.BODY_COLOURS.max(1) == 255).all() and (sk.BODY_COLOURS.min(1) == 0).all()


def test_hand_edges_form_five_fingers():
    assert sk.HAND_EDGES[:5] == ((0, 1), (1, 2), (2, 3), (3, 4), (0, 5))
    assert sorted(child for _, child in sk.HAND_EDGES) == list(range(1, 21))
    assert sk.HAND_COLOURS.tolist()[0] == [255, 0, 0]
    assert sk.HAND_COLOURS.tolist()[10] == [0, 255, 255]


def test_tree_reaches_every_point_from_the_neck():
    assert sk.PARENTS[sk.NECK] == -1 and (np.delete(sk.PARENTS, sk.NECK) >= 0).all()
    assert sorted(sk.TREE_ORDER) == list(range(sk.NUM_POINTS))
    place = {point: i for i, point in enumerate(sk.TREE_ORDER)}
    assert all(place[sk.PARENTS[p]] < place[p] for p in sk.TREE_ORDER[1:])
    assert sk.PARENTS[92] == sk.LEFT_WRIST and sk.PARENTS[113] == sk.RIGHT_WRIST
    assert set(sk.PARENTS[24:92]) == {sk.NOSE}
    assert set(sk.PARENTS[18:21]) == {sk.LEFT_ANKLE}


def test_mirror_is_an_involution_that_keeps_the_tree():
    assert (sk.MIRROR[sk.MIRROR] == np.arange(sk.NUM_POINTS)).all()
    moved = [p for p in sk.TREE_ORDER[1:] if sk.MIRROR[sk.PARENTS[p]] != sk.PARENTS[sk.MIRROR[p]]]
    assert moved == []
    # On the midline: nose, neck, chin, four of the nose bridge, nose base and lips.
    fixed = np.flatnonzero(sk.MIRROR == np.arange(sk.NUM_POINTS))
    assert fixed.tolist() == [0, 1, *(24 + np.array([8, 27, 28, 29, 30, 33, 51, 57, 62, 66]))]
    assert sk.MIRROR[24 + 36] == 24 + 45 and sk.MIRROR[24 + 41] == 24 + 46
    assert sk.MIRROR[24 + 48] == 24 + 54 and sk.MIRROR[92] == 113
