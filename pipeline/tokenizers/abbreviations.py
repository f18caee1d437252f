"""Word lists of the `words` tokeniser: abbreviations and words that start sentences. Only data.

All entries are lower-case and without the final full stop.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A name follows: the full stop never ends a sentence.
TITLES = _words(
    """mr mrs ms messrs mme mlle mm dr drs prof st ste sr sra srta sres dña hr fr frl dott sig
    adm brig capt cdr cmdr col comdr cpl gen gov hon insp lieut lt maj pres rep reps rev sen
    sens sgt supt dhr mevr mgr msgr pvt amb atty viz vs cf ca bzw vgl resp approx eg ie"""
)

# The full stop may also end a sentence.
ABBREVIATIONS = _words(
    """etc inc corp co cos ltd bros llc plc jr esq dept univ assn assoc intl natl govt al
    jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thur thurs fri
    ala ariz ark calif colo conn del fla ga ill ind kan kans ky la mass md mich minn miss mo mont
    neb nebr nev okla ont ore pa penn tenn tex va vt wash wis wyo
    ave blvd rd hwy ft mt mts bldg tel hrs mins secs lbs
    lb oz ph.d m.d b.sc m.sc ll.d
    usw bspw evtl ggf inkl exkl mio mrd jh jhd
    env núm tfno ecc bijv enz blz uds"""
)

# A number follows the full stop; before anything else the full stop ends the sentence.
LABELS = _words(
    "no nos nr nrs p pp pg pgs vol vols ch chap sec sect art arts fig figs eq eqs ref refs tab ver "
    "op cap para nº rm pág págs"
)

# Abbreviations only when they are written with a capital, or only without: "mass." is a word.
CAPITAL_ONLY = _words(
    "mar mon wed fri apr jan ill ind la ga pa va md mo del mass miss ore wash ark col gen st fr "
    "sen rep rev hon co mt ft mont gov pres adm maj amb tex"
)
LOWER_ONLY = _words("al ca cf sig resp")

MONTHS = _words(
    """january february march april may june july august september october november december
    januar februar märz april mai juni juli august september oktober november dezember
    janvier février mars avril juin juillet août septembre octobre novembre décembre
    januari februari maart april mei juni juli augustus september oktober november december"""
)

# Capitalised, these start a sentence after an abbreviation more often than they go on with it.
STARTERS = _words(
    """the a an this that these those he she it i we you they his her its my our your their
    there here if when while after before but and or so yet in on at by for from to with as
    although though however since because what who why how where which whose not no yes some many
    most all both each every one another such only even also then now still once until unless
    meanwhile instead moreover furthermore nevertheless nonetheless therefore thus hence please
    do does did is are was were has have had can could will would should may might must let
    according during under over about between among against without within like
    der die das ein eine er sie es wir ihr ich und aber auch wenn nach bei für mit auf
    le la les un une il elle ils elles nous vous et mais dans pour avec ce cette ces
    el los las una y pero en con por para se su este esta o os as um uma e mas em com
    de het een en maar hij zij ze wij il lo gli uno ma non che"""
)

# Words that treebanks write as two: where the second begins.
TWO_WORDS = {
    "cannot": 3,
    "gonna": 3,
    "gotta": 3,
    "wanna": 3,
    "lemme": 3,
    "gimme": 3,
    "'tis": 2,
    "'twas": 2,
}
