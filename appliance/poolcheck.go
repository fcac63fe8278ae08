package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/pooltest"
)

// CheckPool implements api.Service. The checks make pools of their own beside the real one, on the same medium, and remove them again; the pool
// itself is not touched, nor need it be open.
func (s *Service) CheckPool(ctx context.Context, name string) (api.Run, error) {
	rec, err := s.poolRecord(name)
	if err != nil {
		return api.Run{}, err
	}
	drv, err := s.d.c.Drivers.Find(rec.Kind)
	if err != nil {
		return api.Run{}, err
	}
	if drv.Scratch == nil || drv.Destroy == nil {
		return api.Run{}, holdfast.Errorf(holdfast.Unsupported, "check pool", "a pool of kind %q has no place to try things out beside it", rec.Kind)
	}
	return s.work(ctx, job.RunCheck, job.Spec{Pool: rec.ID, PoolName: rec.Name}, "pool "+rec.Name, func(ctx context.Context, w *job.Work) (any, error) {
		w.Unit("checks")
		r := s.check(ctx, w, drv, rec)
		s.d.events.Emit(checkedEvent(rec.Name, r))
		if err := ctx.Err(); err != nil {
			return r, context.Cause(ctx)
		}
		if n := len(r.Failed); n > 0 {
			return r, holdfast.Errorf(holdfast.Corrupt, "check pool", "%d of %d checks failed, the first: %s: %s", n, r.Checks, r.Failed[0].Name, r.Failed[0].Text).
				Advise("do not rely on this target before it passes; 'holdfast run show RUN --json' has everything that was found")
		}
		return r, nil
	})
}

func checkedEvent(name string, r api.CheckReport) holdfast.Event {
	e := holdfast.Event{Type: eventPoolChecked, Text: fmt.Sprintf("pool %s: %d of %d checks passed", name, r.Passed, r.Checks), Fields: map[string]string{"pool": name}}
	if len(r.Failed) > 0 {
		e.Severity = holdfast.Alarm
	}
	return e
}

// check runs the conformance suite, one check after the other.
func (s *Service) check(ctx context.Context, w *job.Work, drv pools.Driver, rec catalog.Pool) api.CheckReport {
	checks := pooltest.Checks()
	r := api.CheckReport{Checks: len(checks), Failed: []api.CheckFailure{}, Left: []string{}}
	tag := strings.ToLower(holdfast.NewID().String()[:8])
	for i, c := range checks {
		w.Progress(int64(i), int64(len(checks)))
		if ctx.Err() != nil {
			break
		}
		w.Phase(c.Name)
		h := &scratchHouse{ctx: ctx, s: s, drv: drv, rec: rec, tag: tag + "-" + strconv.Itoa(i), made: map[pools.Pool]*scratchPool{}}
		t := &checkLog{}
		switch passed := c.Run(t, pooltest.Harness{New: h.create, Reopen: h.reopen}); {
		case passed:
			r.Passed++
		case ctx.Err() == nil: // a check that was cut off says nothing
			r.Failed = append(r.Failed, api.CheckFailure{Name: c.Name, Text: t.text()})
		}
		r.Left = append(r.Left, h.clear()...)
	}
	return r
}

// maxCheckText bounds what is kept of a failed check, in bytes.
const maxCheckText = 4096

// A checkLog collects what a check says against a pool.
type checkLog struct {
	mu   sync.Mutex
	errs []string
}

func (*checkLog) Helper()             {}
func (*checkLog) Logf(string, ...any) {}

func (l *checkLog) Errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, fmt.Sprintf(format, args...))
}

func (l *checkLog) Fatalf(format string, args ...any) {
	l.Errorf(format, args...)
	runtime.Goexit()
}

func (l *checkLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(l.errs, "; ")
	return text[:min(len(text), maxCheckText)]
}

// A scratchHouse makes the pools of one check and removes them.
type scratchHouse struct {
	ctx  context.Context // of the run
	s    *Service
	drv  pools.Driver
	rec  catalog.Pool
	tag  string
	made map[pools.Pool]*scratchPool
	all  []*scratchPool
}

type scratchPool struct {
	id     holdfast.PoolID
	config json.RawMessage
	pool   pools.Pool
}

// env is a scratch pool's: it says nothing to anybody, and keeps what may be lost beside that of the real pools.
func (h *scratchHouse) env(id holdfast.PoolID) pools.Env {
	env := h.s.d.shelf.envOf(id)
	env.Listener = nil
	return env
}

func (h *scratchHouse) create(t pooltest.T) pools.Pool {
	if h.ctx.Err() != nil {
		t.Fatalf("%v", context.Cause(h.ctx))
	}
	config, err := h.drv.Scratch(h.rec.Config, h.tag+"-"+strconv.Itoa(len(h.all)))
	if err != nil {
		t.Fatalf("%v", err)
	}
	x := &scratchPool{id: holdfast.PoolID{ID: holdfast.NewID()}, config: config}
	h.all = append(h.all, x)
	// Not cut off half-way: what is there whole can be destroyed.
	if err := h.drv.Create(context.WithoutCancel(h.ctx), h.env(x.id), x.id, x.config); err != nil {
		t.Fatalf("create: %v", err)
	}
	return h.open(t, x)
}

func (h *scratchHouse) open(t pooltest.T, x *scratchPool) pools.Pool {
	p, err := h.drv.Open(h.ctx, h.env(x.id), x.id, x.config)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	x.pool = p
	h.made[p] = x
	return p
}

func (h *scratchHouse) reopen(t pooltest.T, p pools.Pool) pools.Pool {
	x := h.made[p]
	x.pool = nil
	if err := p.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	return h.open(t, x)
}

// clear removes the check's pools and says what could not be removed. It does its work also when the run was cancelled.
func (h *scratchHouse) clear() []string {
	var left []string
	ctx := context.WithoutCancel(h.ctx)
	for _, x := range h.all {
		if x.pool != nil {
			_ = x.pool.Close() // it is closed already where the check passed
		}
		err := h.drv.Destroy(ctx, h.env(x.id), x.id, x.config)
		if err == nil || holdfast.KindOf(err) == holdfast.NotExist {
			err = h.s.d.shelf.dropState(x.id)
		}
		if err != nil {
			left = append(left, err.Error())
		}
	}
	return left
}
