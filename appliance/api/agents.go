package api

import (
	"encoding/json"
	"net/http"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// registerAgents registers the control plane of ingest/wire on the port. Bodies are read strictly.
func (a *API) registerAgents() {
	a.handle(a.remote, "POST "+wire.PathEnroll, a.enroll)
	a.handle(a.remote, "POST "+wire.PathInventory, a.inventory)
	a.handle(a.remote, "GET "+wire.PathTasks, a.tasks)
	a.handle(a.remote, "POST "+wire.PathReport, a.report)
}

// hostOf returns the host whose agent speaks; the gate has seen to it that there is one.
func hostOf(r *http.Request) AgentHost {
	p, _ := auth.From(r.Context())
	return AgentHost{ID: p.Host, Name: p.Name}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	writeError(w, r, status[holdfast.KindOf(err)], err)
}

func (a *API) enroll(w http.ResponseWriter, r *http.Request) {
	var req wire.EnrollRequest
	r.Body = http.MaxBytesReader(w, r.Body, maxEnroll)
	if err := decodeBody(r, &req); err != nil {
		fail(w, r, err)
		return
	}
	resp, err := a.o.Agents.Enroll(r.Context(), r.RemoteAddr, req)
	if err != nil {
		fail(w, r, err)
		return
	}
	writeJSON(w, resp)
}

// maxEnroll bounds the one body that comes from a stranger, in bytes.
const maxEnroll = 64 << 10

func (a *API) inventory(w http.ResponseWriter, r *http.Request) {
	var inv wire.Inventory
	err := decodeBody(r, &inv)
	if err == nil {
		err = a.o.Agents.Inventory(r.Context(), hostOf(r), inv)
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *API) report(w http.ResponseWriter, r *http.Request) {
	var rs []wire.Report
	err := decodeBody(r, &rs)
	if err == nil {
		err = a.o.Agents.Report(r.Context(), hostOf(r), rs)
	}
	if err != nil {
		fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// tasks is the stream of notices: one JSON object a line, flushed one by one.
func (a *API) tasks(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	started := false
	enc := json.NewEncoder(w)
	err := a.o.Agents.Tasks(r.Context(), hostOf(r), func(n wire.Notice) error {
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		if err := enc.Encode(n); err != nil {
			return err
		}
		return out.Flush()
	})
	if err != nil && !started {
		fail(w, r, err)
	}
}
