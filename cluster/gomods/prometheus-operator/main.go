// What the Prometheus operator would have Prometheus scrape: PodMonitors in, as a JSON list; prometheus.yml out.
package main

import (
	"encoding/json"
	"log"
	"os"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus-operator/prometheus-operator/pkg/assets"
	"github.com/prometheus-operator/prometheus-operator/pkg/prometheus"
)

func main() {
	var given []*monitoringv1.PodMonitor
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		log.Fatal(err)
	}
	monitors := map[string]*monitoringv1.PodMonitor{}
	for _, monitor := range given {
		monitors[monitor.Namespace+"/"+monitor.Name] = monitor
	}
	owner := &monitoringv1.Prometheus{}
	owner.Namespace = "monitoring"
	owner.Spec.ScrapeInterval = "1s"
	owner.Spec.EvaluationInterval = "1s"
	generator, err := prometheus.NewConfigGenerator(nil, owner)
	if err != nil {
		log.Fatal(err)
	}
	store := assets.NewTestStoreBuilder()
	written, err := generator.GenerateServerConfiguration(owner, nil, monitors, nil, nil, store, nil, nil, nil, nil)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(written)
}
