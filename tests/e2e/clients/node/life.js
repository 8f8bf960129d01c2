// The life of an endpoint as a user of Google's Node client writes it; nothing here knows of Pierhead.
//
// `node life.js HOST:PORT PROJECT PICTURE` with the token in TOKEN. Prints what it sees as one line of JSON.

import {readFileSync} from 'node:fs';
import aiplatform from '@google-cloud/aiplatform';
import {GoogleAuth, OAuth2Client} from 'google-auth-library';

const [address, project, picture] = process.argv.slice(2);
const [host, port] = address.split(':');
const authClient = new OAuth2Client();
authClient.setCredentials({access_token: process.env.TOKEN});
const options = {
  apiEndpoint: host,
  port: Number(port),
  protocol: 'http',
  fallback: true,
  projectId: project,
  auth: new GoogleAuth({authClient, projectId: project}),
};
const {EndpointServiceClient, JobServiceClient, ModelServiceClient, PredictionServiceClient} = aiplatform.v1;
const endpoints = new EndpointServiceClient(options);
const models = new ModelServiceClient(options);
const predictions = new PredictionServiceClient(options);
const jobs = new JobServiceClient(options);
const parent = `projects/${project}/locations/us-central1`;
const seen = {};

async function done(call) {
  const [operation] = await call;
  const [response] = await operation.promise();
  return response;
}

const uploaded = await done(
  models.uploadModel({
    parent,
    model: {
      displayName: 'Photos',
      artifactUri: 'gs://models/photos/1',
      containerSpec: {imageUri: 'us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest'},
    },
  }),
);
const created = await done(endpoints.createEndpoint({parent, endpoint: {displayName: 'Photos'}}));
const endpoint = created.name;
const deployed = await done(
  endpoints.deployModel({
    endpoint,
    deployedModel: {
      model: uploaded.model,
      displayName: 'blue',
      dedicatedResources: {machineSpec: {machineType: 'n1-standard-2'}, minReplicaCount: 1},
    },
    trafficSplit: {0: 100},
  }),
);
const [got] = await endpoints.getEndpoint({name: endpoint});
seen.split = got.trafficSplit[deployed.deployedModel.id];

const [updated] = await endpoints.updateEndpoint({
  endpoint: {name: endpoint, trafficSplit: {[deployed.deployedModel.id]: 100}, labels: {team: 'a'}},
  updateMask: {paths: ['traffic_split', 'labels']},
});
seen.updated = [updated.trafficSplit[deployed.deployedModel.id], updated.labels.team];

const instance = {
  structValue: {
    fields: {
      content: {stringValue: readFileSync(picture).toString('base64')},
      mimeType: {stringValue: 'image/png'},
    },
  },
};
const parameters = {structValue: {fields: {maxPredictions: {numberValue: 1}}}};
const [answer] = await predictions.predict({endpoint, instances: [instance], parameters});
seen.prediction = answer.predictions[0].structValue.fields.displayNames.listValue.values.map(value => value.stringValue);

const [job] = await jobs.createBatchPredictionJob({
  parent,
  batchPredictionJob: {
    displayName: 'Nightly',
    model: uploaded.model,
    inputConfig: {instancesFormat: 'jsonl', gcsSource: {uris: ['gs://node/lines.jsonl']}},
    outputConfig: {predictionsFormat: 'jsonl', gcsDestination: {outputUriPrefix: 'gs://node/out'}},
    dedicatedResources: {machineSpec: {machineType: 'n1-standard-2'}, startingReplicaCount: 1},
  },
});
await jobs.cancelBatchPredictionJob({name: job.name});
const deadline = Date.now() + 120_000;
let state = job.state;
while (!['JOB_STATE_CANCELLED', 'JOB_STATE_SUCCEEDED'].includes(state)) {
  if (Date.now() > deadline) throw new Error(`the job is ${state}`);
  await new Promise(resolve => setTimeout(resolve, 500));
  [{state}] = await jobs.getBatchPredictionJob({name: job.name});
}
seen.job = state;
await done(jobs.deleteBatchPredictionJob({name: job.name}));

await done(endpoints.undeployModel({endpoint, deployedModelId: deployed.deployedModel.id}));
await done(endpoints.deleteEndpoint({name: endpoint}));
await done(models.deleteModel({name: uploaded.model}));
const [left] = await endpoints.listEndpoints({parent});
seen.left = left.length;
console.log(JSON.stringify(seen));
