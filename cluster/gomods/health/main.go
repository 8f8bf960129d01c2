// How GitOps tools judge objects: Flux by its own kstatus, Argo CD by a health script in the Lua that it runs.
//
// Argo CD's engine itself brings several hundred packages along and cannot be required without its go.mod's replace
// lines. What it runs a script with is the same gopher-lua, of the same version, opened here as
// argo-cd/util/lua/lua.go does it: without the standard libraries but package, base and table, and for a second at most.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type question struct {
	Script  string                       `json:"script"`
	Objects []*unstructured.Unstructured `json:"objects"`
}

type judgement struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type answer struct {
	Flux   judgement `json:"flux"`
	ArgoCD judgement `json:"argocd"`
}

// Reads one question from stdin, and writes one answer for each of its objects.
func main() {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal(err)
	}
	answers := []answer{}
	for _, object := range asked.Objects {
		flux, err := status.Compute(object)
		if err != nil {
			log.Fatal(err)
		}
		answers = append(answers, answer{judgement{flux.Status.String(), flux.Message}, run(asked.Script, object.Object)})
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		log.Fatal(err)
	}
}

func run(script string, object map[string]any) judgement {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable},
	} {
		state.Push(state.NewFunction(library.open))
		state.Push(lua.LString(library.name))
		state.Call(1, 0)
	}
	deadline, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(deadline)
	state.SetGlobal("obj", convert(state, object))
	if err := state.DoString(script); err != nil {
		log.Fatal(err)
	}
	health, isTable := state.Get(-1).(*lua.LTable)
	if !isTable {
		log.Fatalf("the script gives a %s, not a table", state.Get(-1).Type())
	}
	return judgement{lua.LVAsString(health.RawGetString("status")), lua.LVAsString(health.RawGetString("message"))}
}

func convert(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case string:
		return lua.LString(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case []any:
		list := state.NewTable()
		for _, item := range value {
			list.Append(convert(state, item))
		}
		return list
	case map[string]any:
		table := state.NewTable()
		for key, item := range value {
			table.RawSetString(key, convert(state, item))
		}
		return table
	}
	return lua.LNil
}
