"""What Vertex AI has and Pierhead has not: told by its name, instead of as a path that there is not. Pure."""

import re

_MOST_PATH = 2048  # characters: longer than any of Vertex AI's
_PATH = re.compile(
    r"/(?:v1|v1beta1)/projects/[^/:]+/locations/[^/:]+"
    r"(?:/(?P<collection>[^/:]+))?(?:/[^/:]+)?(?:/(?P<below>[^/:]+)(?:/[^:]*)?)?(?::(?P<verb>\w+))?"
)
# Those of the discovery documents of v1 and v1beta1 beside endpoints, models, batchPredictionJobs and operations.
_COLLECTIONS = """
agentAnomalyDetectionScopes agents apps cachedContents collaborativeProjects customJobs dataLabelingJobs datasets
deploymentResourcePools detectors edgeDevices evaluationExperiments evaluationItems evaluationMetrics evaluationRuns
evaluationSets exampleStores extensionControllers extensions featureGroups featureOnlineStores featurestores
hyperparameterTuningJobs indexEndpoints indexes interactions interactionsHttp learningSets memoryBanks metadataStores
migratableResources modelDeploymentMonitoringJobs modelMonitors monitoredAgents nasJobs notebookExecutionJobs
notebookRuntimeTemplates notebookRuntimes onlineEvaluators persistentResources pipelineJobs publishers ragCorpora
ragEngineConfig reasoningEngines schedules semanticGovernancePolicies semanticGovernancePolicyEngine servingProfiles
skills solvers specialistPools studies taskStores tasks tensorboards trainingPipelines tuningJobs voices
"""
# What is below one resource of a collection, and the verbs of a collection; without a name, of the location itself.
_BELOW = {
    "endpoints": "chat completions deployedModels embeddings invoke responses science",
    "models": "evaluations",
}
_VERBS = {
    "": """
askContexts asyncRetrieveContexts augmentPrompt corroborateContent deploy deployPublisherModel evaluateDataset
evaluateInstances generateInstanceRubrics generateLossClusters generateSyntheticData generateUserScenarios recommendSpec
retrieveContexts
""",
    "endpoints": """
computeTokens countTokens directPredict directRawPredict fetchPredictOperation generateContent getIamPolicy
predictLongRunning serverStreamingPredict setIamPolicy streamGenerateContent streamRawPredict testIamPermissions update
""",
    "models": "copy export getIamPolicy listCheckpoints setIamPolicy testIamPermissions updateExplanationDataset",
}


def find_unsupported(path: str) -> str:
    """What Vertex AI knows a path as, such as `endpoints.countTokens`; empty for one that it does not know either."""
    found = _PATH.fullmatch(path) if len(path) <= _MOST_PATH else None
    if found is None:
        return ""
    collection, below, verb = (found[name] or "" for name in ("collection", "below", "verb"))
    if collection in _COLLECTIONS.split():
        return collection
    if below:
        return f"{collection}.{below}" if below in _BELOW.get(collection, "").split() else ""
    return ".".join(filter(None, (collection, verb))) if verb in _VERBS.get(collection, "").split() else ""
