"""Rules: ``rules.yaml`` becomes a :class:`~kwsiem.rules.model.RuleSet`.

``document`` reads YAML into a tree that knows its positions, ``load`` checks the keys of a rule,
``detection`` and ``correlation`` translate the two Sigma blocks, ``testing`` runs a rule's own tests, and
``model`` is what the engine gets. Only ``model`` may be imported by the engine's process: the others bring
YAML and pySigma with them.
"""
