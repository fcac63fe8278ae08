package api

import (
	"context"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/retain"
)

type (
	// Retention is the part of Service that is about how long sets stay.
	Retention interface {
		Policies(ctx context.Context) (Policies, error)
		SetPolicy(ctx context.Context, c PolicyChange) (Policies, error)
		// SimulateRetention says what ApplyRetention would do, by the same computation. It changes nothing.
		SimulateRetention(ctx context.Context, a RetentionAsk) (RetentionReport, error)
		// ApplyRetention starts a run that deletes what has expired; its result is a RetentionReport.
		ApplyRetention(ctx context.Context, pool string) (Run, error)
		// HoldSet keeps a set from being deleted until a time, which can only be extended.
		HoldSet(ctx context.Context, id string, until time.Time) (Set, error)
	}

	// Policies are the retention policies there are. A job's is for the sets that the job wrote; a pool's for the others in it. Sets without
	// a policy stay until somebody deletes them.
	Policies struct {
		Zone  string    `json:"zone" doc:"in which days, weeks and months are counted"`
		Jobs  []Policy  `json:"jobs"`
		Pools []Policy  `json:"pools"`
		Last  time.Time `json:"last,omitzero" doc:"when the daily round was last done"`
	}

	// Policy is the policy of a job or a pool.
	Policy struct {
		Name   string `json:"name"`
		Policy string `json:"policy"`
	}

	// PolicyChange sets the policy of a job or a pool, or the zone. An empty policy removes it.
	PolicyChange struct {
		Job    string  `json:"job,omitempty"`
		Pool   string  `json:"pool,omitempty"`
		Policy string  `json:"policy,omitempty" doc:"like days=30,weekly=8,monthly=12,min=2"`
		Zone   *string `json:"zone,omitempty"`
	}

	// RetentionAsk asks what retention would do: in a pool, or with points that are imagined.
	RetentionAsk struct {
		Pool   string         `json:"pool,omitempty"`
		Policy string         `json:"policy,omitempty" doc:"instead of the policies that are set"`
		Points []retain.Point `json:"points,omitempty" maxItems:"100000" doc:"an imagined timeline, instead of a pool's sets; needs a policy"`
		Now    time.Time      `json:"now,omitzero" doc:"as if it were then"`
		Zone   string         `json:"zone,omitempty"`
	}

	// RetentionReport is what retention decides, or did, in a pool.
	RetentionReport struct {
		Pool      string              `json:"pool,omitempty"`
		Decisions []RetentionDecision `json:"decisions"`
		Kept      int                 `json:"kept"`
		Removed   int                 `json:"removed"`
		Frees     int64               `json:"frees" doc:"bytes that the removed sets give back at the next collect"`
		Estimate  bool                `json:"estimate" doc:"frees is what the sets added when they were written; sets that share data may free less one by one, and more together"`
		Errors    []string            `json:"errors,omitempty" doc:"sets that should have gone and could not be deleted"`
	}

	// RetentionDecision is what becomes of one set.
	RetentionDecision struct {
		retain.Decision
		Policy string `json:"policy,omitempty"`
		Of     string `json:"of,omitempty" doc:"whose policy it is: job NAME or pool NAME"`
	}

	// SetHold asks for a hold.
	SetHold struct {
		Until time.Time `json:"until"`
	}
)

type holdIn struct {
	ID   string `path:"id"`
	Body SetHold
}

type applyIn struct {
	Pool string `query:"pool" required:"true" doc:"name or id"`
}

func (a *API) registerRetention() {
	s := a.o.Service
	route(a, "GET", "/v1/retention", "Show retention policies", 200, func(ctx context.Context, _ *none) (Policies, error) { return s.Policies(ctx) })
	route(a, "PUT", "/v1/retention", "Set a retention policy", 200, func(ctx context.Context, in *bodyOfType[PolicyChange]) (Policies, error) {
		return s.SetPolicy(ctx, in.Body)
	})
	route(a, "POST", "/v1/retention/simulate", "Say what retention would do", 200, func(ctx context.Context, in *bodyOfType[RetentionAsk]) (RetentionReport, error) {
		return s.SimulateRetention(ctx, in.Body)
	})
	route(a, "POST", "/v1/retention/apply", "Delete what has expired in a pool", 202, func(ctx context.Context, in *applyIn) (Run, error) {
		return s.ApplyRetention(ctx, in.Pool)
	})
	route(a, "POST", "/v1/sets/{id}/hold", "Keep a set from being deleted until a time", 200, func(ctx context.Context, in *holdIn) (Set, error) {
		return s.HoldSet(ctx, in.ID, in.Body.Until)
	})
}

// Add puts decisions into the report and returns the bytes that they free.
func (r *RetentionReport) Add(ds []retain.Decision, policy, of string) (frees int64) {
	for _, d := range ds {
		r.Decisions = append(r.Decisions, RetentionDecision{Decision: d, Policy: policy, Of: of})
		if d.Keep {
			r.Kept++
			continue
		}
		r.Removed++
		frees += d.Frees
	}
	r.Frees += frees
	return frees
}

// SimulateTimeline decides about imagined points: what is asked says all there is to know, so that no appliance is needed.
func SimulateTimeline(a RetentionAsk, now time.Time, zone *time.Location) (RetentionReport, error) {
	if a.Policy == "" {
		return RetentionReport{}, holdfast.Errorf(holdfast.Invalid, "simulate retention", "imagined points need a policy").Advise("say one with --policy")
	}
	p, err := retain.ParsePolicy(a.Policy)
	if err != nil {
		return RetentionReport{}, err
	}
	out := RetentionReport{Decisions: []RetentionDecision{}}
	out.Add(retain.Decide(p, a.Points, now, zone, retain.PoolFill{}), p.String(), "")
	return out, nil
}
