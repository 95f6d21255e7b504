"""A generated shop: product texts, users and purchases whose true next-item probabilities are known.

How it is made, with N items, U users and k = 8 taste factors; `~` draws from the seeded generator:

1. *Text.* Item i has a theme (20 of them, equally frequent) and four attributes. The theme places it on four
   axes (outdoors, active, shared, technical) and the attributes on four more (premium, adult, modern,
   heavy-duty), each time as a sign s_ij in {-1, 0, +1}. Title and description speak of the theme in its own
   words and name a pole of each attribute whose sign is not 0. The texts do not depend on `visible`.
2. *Taste factors.* x_ij = s_ij + 0.35 ~N(0, 1), standardised over the catalogue: z_ij. The first
   `visible`·k factors stay with their item, so they can be read off its text up to the noise. The rows of the
   other factors are dealt to the items anew, in one random order: they keep their distribution and lose all
   relation to the text. Attribute and theme axes alternate, so every share has both kinds.
3. *Popularity.* pop_i = rank_i^-0.5 (Zipf), with ranks in an order independent of everything else.
4. *Users.* w_u ~ N(0, I_k); n_u = 5 + ~NegBin(2, 2/7) interactions (mean 10), no item twice. Users arrive in
   2016-2021 with a density that grows linearly; gaps are log-normal around each user's own pace.
5. *Choice.* p(next = i | u, h) ∝ exp(log pop_i + β (w_u + γ z_last) · z_i) for i not in h; `last` is the
   latest item of h, and without a history the γ term is 0. Time plays no part in it.

With one size and seed, every `visible` has the same texts, popularity, user factors and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nullrec_lib.data.interactions import Dataset, assemble
from nullrec_lib.errors import InputError

SIZES = {"tiny": (200, 120), "small": (800, 400), "default": (3000, 1500)}
"""Users and items of each size."""
BETA, GAMMA = 0.6, 0.7
"""Taste strength and the share of the last item in it: step 5."""
FACTOR_NOISE = 0.35
"""What the text leaves unsaid about a visible factor, in units of one sign: step 2."""
ZIPF = 0.5
SHORTEST, MEAN_EXTRA = 5, 5.0
DAY = 86_400.0
OPENED, CLOSED = 1_451_606_400.0, 1_640_995_200.0
"""First and last possible arrival in Unix seconds: 2016-01-01 and 2022-01-01 UTC."""

AXES = ("premium", "outdoors", "adult", "active", "modern", "shared", "heavy-duty", "technical")
"""Factor j's positive pole. Even j: an attribute of the item; odd j: an axis of its theme."""

# Theme: signs on (outdoors, active, shared, technical) / products / "with …" / "for …".
_THEMES = """
camping +0+0 / camp skillet, dome tent, sleeping bag, camp lantern, firewood grate, tarp shelter, camp stove
 / wind-proof fittings, a tidy carry sack, parts that stay dry in the rain / weekend campsites, nights under
 canvas, forest trips
baking -0+- / loaf pan, rolling pin, cake stand, piping bag kit, proofing basket, cookie cutter set, mixing
 bowl / even heat for crisp crusts, a non-stick coating, a drip-free rim / birthday cakes, sourdough loaves,
 holiday cookies
board games --+0 / strategy board game, dice tower, card sleeve box, chess set, domino set, puzzle game,
 quiz game / linen-finish cards, wooden pawns, a thick fold-out board / game night, rainy afternoons at the
 table, four to six players
gardening +0-- / pruning shear, seed tray, watering can, trowel, raised planter, compost bin, trellis / a
 drainage base, a rust-proof blade, root-friendly vents / tomato beds, flower borders, spring planting
cycling ++-+ / bike pump, handlebar bag, cycling helmet, chain lubricant, bike light, pedal set, repair
 stand / a pressure gauge, sealed bearings, a quick-release clamp / road rides, gravel trails, the daily
 commute by bike
photography 0--0 / camera tripod, lens filter, camera strap, softbox light, photo album, lens cleaning kit,
 flash diffuser / a ball head, multi-coated glass, neutral color balance / portrait sessions, landscape
 shots, close-up photos
painting ---- / watercolor set, easel, sketchbook, oil brush set, acrylic paint kit, palette knife,
 stretched canvas / lightfast pigments, acid-free paper, soft bristles / still life studies, quiet studio
 hours, color washes
football +++0 / football goal, training cone set, shin guard, match ball, goalkeeper glove, agility ladder,
 team bib set / a grippy palm, stitched panels, weather-proof netting / team practice, five-a-side matches,
 kick-abouts in the park
yoga -+-- / yoga mat, cork block, stretching strap, bolster, balance cushion, meditation stool, massage
 roller / a non-slip surface, natural cork, a calming texture / morning stretches, breathing exercises, slow
 flows
woodworking -+-+ / bench plane, chisel, dovetail saw, wood clamp, router bit set, marking gauge, sanding
 block / hardened steel, a depth stop, a square fence / fine joinery, cabinet building, workshop projects
home audio --0+ / bookshelf speaker, turntable, headphone amplifier, record brush, sound bar, speaker cable,
 radio / low distortion, a gold-plated plug, a belt drive / vinyl evenings, movie sound, listening to music
 at home
fishing +--0 / fishing rod, spinning reel, tackle box, landing net, fly lure set, bait bucket, wading boot /
 a smooth drag, corrosion-proof guides, barbless hooks / trout streams, dawn on the lake, surf casting
dogs ++0- / dog leash, chew toy, dog harness, fetch ball, dog bed, grooming brush, treat pouch / reflective
 stitching, a padded chest panel, tooth-friendly rubber / long dog walks, puppy training, games of fetch
coffee -0-+ / coffee grinder, pour-over kettle, espresso tamper, milk frother, coffee scale, french press,
 drip filter / conical burrs, a gooseneck spout, precise temperature control / the morning espresso, filter
 coffee, latte art
barbecue +-+0 / charcoal grill, grill tong, meat thermometer, smoker box, basting brush, grill basket, pizza
 stone / adjustable vents, a heat-proof grip, a removable ash tray / backyard cookouts, smoked ribs, summer
 grilling
knitting --0- / knitting needle set, merino yarn, crochet hook, yarn bowl, stitch marker set, embroidery
 hoop, darning kit / splinter-free tips, soft wool fibers, printed patterns / winter sweaters, baby
 blankets, evenings of stitching
astronomy +--+ / telescope, star chart, eyepiece set, moon filter, red flashlight, planet atlas, telescope
 mount / fully coated optics, a fine-focus wheel, an equatorial drive / stargazing, lunar observing, clear
 dark nights
parties -++- / balloon garland, paper lantern, banner kit, party hat set, confetti box, costume set, bubble
 machine / bright festive colors, reusable ribbons, glitter trim / birthday parties, dance floors, family
 celebrations
climbing ++++ / climbing harness, carabiner, chalk bag, belay device, climbing rope, crash pad, climbing
 shoe / a load-rated gate, a dry-treated sheath, sticky rubber / sport routes, bouldering sessions, belaying
 a partner
model railways --++ / model locomotive, track set, signal kit, miniature station, train controller, freight
 wagon, tunnel kit / digital control, etched details, a flywheel motor / club layouts, scale modeling, shelf
 railways
"""

# Attribute: title words and description phrases at the negative and at the positive pole.
_ATTRIBUTES = """
premium / Budget, Value, Low-Cost, Bargain / priced for a tight budget, cheap and cheerful, an affordable
 bargain / Premium, Luxury, Deluxe, High-End / finished to a premium standard, a luxury splurge, made from
 the finest materials
adult / Kids', Children's, Junior, Toddler / made for children, safe for young kids, sized for little hands
 / Adult, Grown-Up, Professional, Expert / meant for adults only, made for grown-ups, aimed at seasoned
 professionals
modern / Rustic, Vintage-Style, Farmhouse, Old-Fashioned / rustic in look, vintage in style, full of old
 farmhouse charm / Modern, Sleek, Minimalist, Contemporary / sleek and modern, minimalist in design,
 contemporary in style
heavy-duty / Compact, Mini, Lightweight, Pocket / small and lightweight, compact enough for a pocket, tiny
 to store / Heavy-Duty, Oversized, Industrial, Extra-Large / heavy-duty and rugged, oversized and massive,
 large and industrial-strength
"""

_FIRST = "Alder Brindle Corvan Dunmere Elsby Fennick Garrow Hollin Istow Jessamy Kelda Lorring".split()
_SECOND = "Finch Wren Thorpe Quill Sorrel Larkin Tansy Oakes Pell Rook Vane Yarrow".split()
_VARIANTS = ("", "", "", ", Green", ", Slate Gray", ", Navy Blue", ", Red", ", Ivory", ", Set of 2",
             ", 2-Pack", ", Mark II", ", Second Edition", ", 10-Inch", ", 12-Inch",
             ", with Storage Bag", ", Gift Boxed")
_OPENINGS = ("This {noun} is made for {use}, with {feature}.",
             "Choose this {noun} for {use}: it offers {feature}.",
             "For {use}, this {noun} brings {feature}.", "Our {noun} has {feature} and suits {use}.",
             "With {feature}, this {noun} is ready for {use}.")
_CLOSINGS = ("It is {said}.", "Customers call it {said}.", "You will find it {said}.")
_PLAIN = ("well made and ready to use", "simple to clean", "backed by a two-year guarantee", "easy to give")


def _parse(block: str) -> list[list[str]]:
    """Records of `/`-separated fields; a record goes on where its next line starts with a blank."""
    return [record.split(" / ") for record in block.strip().replace("\n ", " ").split("\n")]


THEMES = tuple(record[0].rpartition(" ")[0] for record in _parse(_THEMES))


@dataclass(frozen=True, eq=False)
class ShopTruth:
    """What generated a shop; rows are the data set's own item and user ids."""

    item_factors: np.ndarray
    """(N, k) float64 z, each column with mean 0 and variance 1 over the catalogue."""
    user_factors: np.ndarray
    """(U, k) float64 w."""
    visible: np.ndarray
    """(k,) bool: the factors that the texts express."""
    text_signs: np.ndarray
    """(N, k) int64 in {-1, 0, 1}: what each text says on every axis, whether or not taste follows it."""
    themes: np.ndarray
    """(N,) int64: index into `THEMES`."""
    log_popularity: np.ndarray
    """(N,) float64: the log-weights of step 3, up to a constant."""
    beta: float
    gamma: float

    def log_probs(self, users: np.ndarray, histories: np.ndarray) -> np.ndarray:
        """Step 5, exactly: log p(next item | user, history), for B users at once.

        Args:
            users: (B,) int64 user ids.
            histories: (B, L) int64 item ids, oldest first, left-padded with N; L may be 0.

        Returns:
            (B, N) float64, normalised over the items that are not in the history; -inf for those that are.
        """
        histories = np.asarray(histories, dtype=np.int64)
        n_items, k = self.item_factors.shape
        direction = self.user_factors[users]
        if histories.shape[1]:
            padded = np.vstack([self.item_factors, np.zeros(k)])  # the padding id has no taste
            direction = direction + self.gamma * padded[histories[:, -1]]
        logits = np.empty((len(direction), n_items + 1))  # one column more, as padding is masked too
        logits[:, :-1] = self.log_popularity + self.beta * direction @ self.item_factors.T
        np.put_along_axis(logits, histories, -np.inf, axis=1)
        logits = logits[:, :-1]
        top = logits.max(axis=1, keepdims=True)
        return logits - (top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))

    def next_item_log_probs(self, user: int, history: list[int] | np.ndarray) -> np.ndarray:
        """(N,) float64: `log_probs` of one user whose visible history is `history`, oldest first."""
        return self.log_probs(np.array([user]), np.asarray(history, dtype=np.int64)[None, :])[0]


def generate(size: str = "default", visible: float = 0.5, seed: int = 7) -> Dataset:
    """Generate a shop; its `truth` is a `ShopTruth`. The same arguments give the same `fingerprint()`.

    Args:
        size: a key of `SIZES`.
        visible: share of the taste factors that the texts express, in [0, 1], a whole number of them.
        seed: of every draw, at least 0.

    Raises:
        InputError: an unknown size, or a share or seed outside these rules.
    """
    k = len(AXES)
    if size not in SIZES:
        raise InputError(f"size: {size!r} is not one of {', '.join(SIZES)}.")
    if not 0 <= visible <= 1 or not float(visible * k).is_integer():
        raise InputError(f"visible: {visible!r} of {k} factors is not a whole number from 0 to {k}.")
    if seed != int(seed) or seed < 0:
        raise InputError(f"seed: {seed!r} is not a whole number of at least 0.")
    n_users, n_items = SIZES[size]
    # One stream per step: what `visible` changes in one of them leaves the draws of the others alone.
    for_text, for_taste, for_users, for_choice = np.random.default_rng(int(seed)).spawn(4)

    items, themes, signs = _catalogue(n_items, for_text)
    shown = np.arange(k) < round(visible * k)
    truth = ShopTruth(
        item_factors=_factors(signs, shown, for_taste),
        user_factors=for_users.standard_normal((n_users, k)),
        visible=shown,
        text_signs=signs,
        themes=themes,
        log_popularity=-ZIPF * np.log(1.0 + for_taste.permutation(n_items)),
        beta=BETA,
        gamma=GAMMA,
    )
    lengths = SHORTEST + for_users.negative_binomial(2, 2 / (2 + MEAN_EXTRA), n_users)
    lengths = np.minimum(lengths, n_items // 2)
    chosen = _choose(truth, lengths, for_choice)
    name = "shop" if size == "default" else f"shop-{size}"
    name += "" if visible == 0.5 else f"-visible{visible:g}"
    user = np.repeat(np.arange(n_users), lengths)
    return assemble(
        name,
        items,
        # User by user, as `assemble` numbers users by first appearance and the truth has to agree.
        pd.DataFrame({
            "user_id": np.char.mod("user-%04d", user),
            "item_id": items["item_id"].to_numpy()[chosen],
            "timestamp": _clock(lengths, for_users),
        }),
        clock="time",
        truth=truth,
    )


def _catalogue(n_items: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Step 1: the item frame, the themes (N,) int64 and the signs (N, k) int64."""
    records = [[field.split(", ") for field in fields[1:]] for fields in _parse(_THEMES)]
    place = np.array([["-0+".index(c) - 1 for c in fields[0][-4:]] for fields in _parse(_THEMES)])
    poles = [[field.split(", ") for field in fields[1:]] for fields in _parse(_ATTRIBUTES)]
    themes = rng.permutation(np.arange(n_items) % len(THEMES))
    signs = np.empty((n_items, len(AXES)), dtype=np.int64)
    signs[:, 0::2] = rng.choice([-1, 0, 1], p=[0.36, 0.28, 0.36], size=(n_items, len(poles)))
    signs[:, 1::2] = place[themes]

    def pick(options: list[str] | tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    rows, taken = [], set()
    for i in range(n_items):
        nouns, features, uses = records[themes[i]]
        # Fields of a pole: [negative words, negative phrases, positive words, positive phrases].
        spoken = [poles[a][1 + signs[i, 2 * a] :][:2] for a in rng.permutation(len(poles)) if signs[i, 2 * a]]
        title = ""
        while not title or title in taken:
            noun = pick(nouns)
            words = [pick(word) for word, _ in spoken[:2]]
            title = " ".join([pick(_FIRST), "&", pick(_SECOND), *words, noun.title()]) + pick(_VARIANTS)
        taken.add(title)
        said = [pick(phrase) for _, phrase in spoken] or [pick(_PLAIN)]
        said = " and ".join([", ".join(said[:-1]), said[-1]] if said[1:] else said)
        opening = pick(_OPENINGS).format(noun=noun, use=pick(uses), feature=pick(features))
        rows.append((f"item-{i:04d}", title, f"{opening} {pick(_CLOSINGS).format(said=said)}"))
    return pd.DataFrame(rows, columns=["item_id", "title", "description"]), themes, signs


def _factors(signs: np.ndarray, shown: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Step 2: (N, k) float64. The hidden columns are dealt in one common order: their joint law stays."""
    factors = signs + FACTOR_NOISE * rng.standard_normal(signs.shape)
    dealt = rng.permutation(len(signs))
    factors[:, ~shown] = factors[dealt][:, ~shown]
    return (factors - factors.mean(axis=0)) / factors.std(axis=0)


def _clock(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Step 4: (sum of lengths,) float64 whole Unix seconds, user by user, strictly increasing in each."""
    arrival = OPENED + (CLOSED - OPENED) * np.sqrt(rng.random(len(lengths)))
    pace = 20 * DAY * rng.lognormal(0.0, 0.7, len(lengths))
    gaps = 1.0 + np.floor(np.repeat(pace, lengths) * rng.lognormal(0.0, 1.0, lengths.sum()))
    first = np.cumsum(lengths) - lengths
    gaps[first] = 0.0
    passed = np.cumsum(gaps)
    return np.repeat(np.floor(arrival) - passed[first], lengths) + passed


def _choose(truth: ShopTruth, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Step 5: (sum of lengths,) int64 item ids, user by user, drawn from `truth.log_probs` itself."""
    chosen = np.full((len(lengths), lengths.max()), -1)
    for step in range(lengths.max()):
        active = np.flatnonzero(lengths > step)
        cumulative = np.exp(truth.log_probs(active, chosen[active, :step])).cumsum(axis=1)
        # Scaled to the last value, as a sum of N rounded numbers is not exactly 1.
        draw = rng.random((len(active), 1)) * cumulative[:, -1:]
        chosen[active, step] = (cumulative <= draw).sum(axis=1)
    return chosen[chosen >= 0]
