"""Rules: ``rules.yaml`` becomes a :class:`~kwsiem.rules.model.RuleSet`.

``load`` checks the keys of a rule (over :mod:`kwsiem.yamltree`, which knows where everything stands),
``detection`` and ``correlation`` translate the two Sigma blocks, ``testing`` runs a rule's own tests, and
``model`` is what the engine gets. Only ``model`` may be imported by the engine's process: the others bring
YAML and pySigma with them.
"""
