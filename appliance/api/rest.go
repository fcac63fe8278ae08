package api

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

var installErrors = sync.OnceFunc(func() { huma.NewError = humaError })

func newStrictDecoder(r io.Reader) *json.Decoder {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	return dec
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the peer may be gone; there is nobody to tell
}

// Inputs of the routes: path and query parameters, bodies.
type (
	none   struct{}
	byName struct {
		Name string `path:"name" doc:"name or id"`
	}
	byID struct {
		ID string `path:"id"`
	}
	bodyOfType[T any] struct{ Body T }
	collectIn         struct {
		Name   string `path:"name" doc:"name or id"`
		DryRun bool   `query:"dry_run" doc:"only say what would be freed"`
	}
	recompressIn struct {
		Name  string `path:"name" doc:"name or id"`
		Limit int64  `query:"limit" minimum:"0" doc:"stop after so many stored bytes; 0: do everything"`
	}
	changeIn struct {
		Name string `path:"name" doc:"name or id"`
		Body PoolChange
	}
	forgetIn struct {
		Name   string `path:"name" doc:"name or id"`
		Forget bool   `query:"forget" doc:"take it off the appliance and keep its data, sets included"`
	}
	setsIn struct {
		VM   string `query:"vm" doc:"only this VM's (name or id)"`
		Pool string `query:"pool" doc:"only in this pool (name or id)"`
	}
	runsIn struct {
		Limit int `query:"limit" minimum:"1" maximum:"1000" default:"50"`
	}
	runIn struct {
		ID   string `path:"id"`
		Wait int    `query:"wait_ms" minimum:"0" maximum:"30000" doc:"milliseconds to wait for the run's end"`
	}
	exportIn struct {
		ID   string `path:"id"`
		Disk int    `path:"disk" minimum:"0" doc:"its place in the set's list of disks"`
	}
	eventsIn struct {
		Last string `header:"Last-Event-ID" doc:"continue after this event; without it, only new ones"`
	}
	answer[T any] struct{ Body T }
)

// route registers one operation whose handler is one call of the service.
func route[I, O any](a *API, method, path, summary string, code int, call func(context.Context, *I) (O, error)) {
	huma.Register(a.huma, huma.Operation{
		OperationID:   operationID(method, path),
		Method:        method,
		Path:          path,
		Summary:       summary,
		DefaultStatus: code,
		Errors:        []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound},
	}, func(ctx context.Context, in *I) (*answer[O], error) {
		out, err := call(ctx, in)
		if err != nil {
			return nil, bodyOf(err)
		}
		return &answer[O]{out}, nil
	})
}

// octets registers a GET route whose answer is bytes as what call returns writes them. An error of that is in the stream itself, or the peer is gone: the
// answer's head is long gone.
func octets[I any](a *API, path, summary, what string, call func(context.Context, *I) (Export, error)) {
	huma.Register(a.huma, huma.Operation{
		OperationID: operationID(http.MethodGet, path),
		Method:      http.MethodGet,
		Path:        path,
		Summary:     summary,
		Responses:   map[string]*huma.Response{"200": {Description: what, Content: map[string]*huma.MediaType{"application/octet-stream": {}}}},
	}, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		write, err := call(ctx, in)
		if err != nil {
			return nil, bodyOf(err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			hc.SetHeader("Content-Type", "application/octet-stream")
			_ = write(hc.Context(), hc.BodyWriter())
		}}, nil
	})
}

func operationID(method, path string) string {
	p := strings.NewReplacer("/v1/", "", "/", "-", "{", "", "}", "").Replace(path)
	return strings.ToLower(method) + "-" + p
}

func (a *API) registerREST() {
	s := a.o.Service
	route(a, "GET", "/v1/health", "Whether the appliance is there", 200, func(ctx context.Context, _ *none) (Health, error) { return s.Health(ctx), nil })
	route(a, "GET", "/v1/status", "The appliance on one screen", 200, func(ctx context.Context, _ *none) (Status, error) { return s.Status(ctx) })

	route(a, "GET", "/v1/pools", "List pools", 200, func(ctx context.Context, _ *none) ([]Pool, error) { return list(s.Pools(ctx)) })
	route(a, "POST", "/v1/pools", "Create a pool", 201, func(ctx context.Context, in *bodyOfType[PoolSpec]) (Pool, error) { return s.CreatePool(ctx, in.Body) })
	route(a, "POST", "/v1/pools/import", "Take over a pool that is already there", 201, func(ctx context.Context, in *bodyOfType[PoolSpec]) (Imported, error) {
		return s.ImportPool(ctx, in.Body)
	})
	route(a, "GET", "/v1/pools/{name}", "Show a pool", 200, func(ctx context.Context, in *byName) (Pool, error) { return s.Pool(ctx, in.Name) })
	route(a, "POST", "/v1/pools/{name}/verify", "Read a pool back and check every byte", 202, func(ctx context.Context, in *byName) (Run, error) {
		return s.VerifyPool(ctx, in.Name)
	})
	route(a, "POST", "/v1/pools/{name}/gc", "Give the space of deleted sets back", 202, func(ctx context.Context, in *collectIn) (Run, error) {
		return s.CollectPool(ctx, in.Name, in.DryRun)
	})
	route(a, "POST", "/v1/pools/{name}/recompress", "Encode what has come to stay with fewer bytes", 202, func(ctx context.Context, in *recompressIn) (Run, error) {
		return s.RecompressPool(ctx, in.Name, in.Limit)
	})
	route(a, "GET", "/v1/pools/{name}/space", "Say where a pool's bytes are", 200, func(ctx context.Context, in *byName) (PoolSpace, error) {
		return s.PoolSpace(ctx, in.Name)
	})
	route(a, "POST", "/v1/pools/{name}/check", "Try the pool's target out in a scratch area beside it", 202, func(ctx context.Context, in *byName) (Run, error) {
		return s.CheckPool(ctx, in.Name)
	})
	route(a, "PATCH", "/v1/pools/{name}", "Change a pool", 200, func(ctx context.Context, in *changeIn) (PoolChanged, error) {
		return s.SetPool(ctx, in.Name, in.Body)
	})
	route(a, "DELETE", "/v1/pools/{name}", "Remove a pool without sets, or forget one", 200, func(ctx context.Context, in *forgetIn) (Pool, error) {
		return s.DeletePool(ctx, in.Name, in.Forget)
	})

	route(a, "GET", "/v1/hosts", "List hosts", 200, func(ctx context.Context, _ *none) ([]Host, error) { return list(s.Hosts(ctx)) })
	route(a, "POST", "/v1/hosts", "Make a one-time access key for a host", 201, func(ctx context.Context, in *bodyOfType[HostSpec]) (EnrolKey, error) {
		return s.EnrollHost(ctx, in.Body.Name)
	})
	route(a, "DELETE", "/v1/hosts/{name}", "Remove a host and revoke its certificate", 200, func(ctx context.Context, in *byName) (Host, error) {
		return s.RemoveHost(ctx, in.Name)
	})
	route(a, "GET", "/v1/vms", "List virtual machines", 200, func(ctx context.Context, _ *none) ([]VM, error) { return list(s.VMs(ctx)) })
	a.registerNetworks()
	a.registerKeys()
	a.registerNotify()
	a.registerTape()
	a.registerConfig()
	a.registerMonitor()
	a.registerWork()
	a.registerJobs()
	a.registerRestores()
	a.registerRetention()
	a.registerSets()
	a.registerMounts()
	a.registerEvents()
}

func (a *API) registerWork() {
	s := a.o.Service
	route(a, "POST", "/v1/backups", "Back virtual machines up now", 202, func(ctx context.Context, in *bodyOfType[BackupSpec]) (Run, error) {
		return s.Backup(ctx, in.Body)
	})
	route(a, "GET", "/v1/runs", "List runs, newest first", 200, func(ctx context.Context, in *runsIn) ([]Run, error) { return list(s.Runs(ctx, in.Limit)) })
	route(a, "GET", "/v1/runs/{id}", "Show a run, waiting for its end if asked to", 200, func(ctx context.Context, in *runIn) (Run, error) {
		return s.Run(ctx, in.ID, time.Duration(in.Wait)*time.Millisecond)
	})
	route(a, "POST", "/v1/runs/{id}/cancel", "Cancel a run", 202, func(ctx context.Context, in *byID) (Run, error) { return s.CancelRun(ctx, in.ID) })
	route(a, "POST", "/v1/catalog/rebuild", "Rebuild the catalog from the pools", 202, func(ctx context.Context, _ *none) (Run, error) {
		return s.RebuildCatalog(ctx)
	})
}

func (a *API) registerSets() {
	s := a.o.Service
	route(a, "GET", "/v1/sets", "List backup sets, oldest first", 200, func(ctx context.Context, in *setsIn) ([]Set, error) {
		return list(s.Sets(ctx, SetFilter{VM: in.VM, Pool: in.Pool}))
	})
	route(a, "GET", "/v1/sets/{id}", "Show a set", 200, func(ctx context.Context, in *byID) (Set, error) { return s.Set(ctx, in.ID) })
	route(a, "POST", "/v1/sets/{id}/verify", "Read a set back and check every byte", 202, func(ctx context.Context, in *byID) (Run, error) {
		return s.VerifySet(ctx, in.ID)
	})
	route(a, "DELETE", "/v1/sets/{id}", "Delete a set for good", 200, func(ctx context.Context, in *byID) (Set, error) { return s.DeleteSet(ctx, in.ID) })
	octets(a, "/v1/sets/{id}/disks/{disk}/parcels", "Stream one disk of a set as a parcel stream", "a parcel stream", func(ctx context.Context, in *exportIn) (Export, error) {
		return s.ExportDisk(ctx, in.ID, in.Disk)
	})
}

// list makes an empty list [] instead of null.
func list[T any](s []T, err error) ([]T, error) {
	if s == nil {
		s = []T{}
	}
	return s, err
}
