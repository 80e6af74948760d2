// kstatus prints the state that Flux computes for Kubernetes objects: by the rules of the kstatus library, and by the
// healthCheckExprs of a Kustomization.
//
// Standard input is {"healthCheckExprs": [...], "objects": [...]}, standard output a list with {"kstatus": STATUS,
// "flux": STATUS} for each object. "flux" is the first for a kind without an expression; it is Unknown, for which Flux
// waits, where an expression cannot be evaluated.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type question struct {
	HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
	Objects          []*unstructured.Unstructured  `json:"objects"`
}

type answer struct {
	Kstatus status.Status `json:"kstatus"`
	Flux    status.Status `json:"flux"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func run() error {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	build, err := cel.NewStatusReader(asked.HealthCheckExprs)
	if err != nil {
		return err
	}
	reader := build(nil)
	answers := make([]answer, len(asked.Objects))
	for i, object := range asked.Objects {
		computed, err := status.Compute(object)
		if err != nil {
			return fmt.Errorf("object %d: %w", i, err)
		}
		answers[i] = answer{computed.Status, computed.Status}
		if reader.Supports(object.GroupVersionKind().GroupKind()) {
			read, err := reader.ReadStatusForObject(context.Background(), nil, object)
			if err != nil {
				return fmt.Errorf("object %d: %w", i, err)
			}
			answers[i].Flux = read.Status
		}
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}
