package api

import (
	"context"

	"github.com/holdfast-backup/holdfast/appliance/site"
)

// Config is the part of the service that exports, compares and applies a whole site as a YAML file. The routes are there if the service
// has it.
type Config interface {
	ExportConfig(ctx context.Context) (ConfigText, error)
	DiffConfig(ctx context.Context, t ConfigText) (site.Plan, error)
	// ApplyConfig does what DiffConfig showed. Once it has begun, its failure is in Applied: keys that were made are shown once.
	ApplyConfig(ctx context.Context, a ConfigApply) (Applied, error)
}

type (
	// ConfigText is a site file.
	ConfigText struct {
		Text string `json:"text" maxLength:"1048576" doc:"YAML"`
	}

	// ConfigApply says what to apply.
	ConfigApply struct {
		Text    string `json:"text" maxLength:"1048576" doc:"YAML"`
		Plan    string `json:"plan,omitempty" doc:"id of the plan that was shown; if it would be another one now, nothing is done"`
		Consent bool   `json:"consent,omitempty" doc:"what will be lost may be lost"`
	}

	// Applied is what was done.
	Applied struct {
		Plan  site.Plan   `json:"plan"`
		Done  int         `json:"done" doc:"steps of the plan that were done"`
		Made  []site.Made `json:"made" doc:"shown once"`
		Error *Failure    `json:"error,omitempty" doc:"why the next step was not done; applying again goes on"`
	}
)

func (a *API) registerConfig() {
	s, ok := a.o.Service.(Config)
	if !ok {
		return
	}
	route(a, "GET", "/v1/config", "Export the site as a YAML file", 200, func(ctx context.Context, _ *none) (ConfigText, error) { return s.ExportConfig(ctx) })
	route(a, "POST", "/v1/config/diff", "Compare a YAML file with the site", 200, func(ctx context.Context, in *bodyOfType[ConfigText]) (site.Plan, error) {
		return s.DiffConfig(ctx, in.Body)
	})
	route(a, "POST", "/v1/config/apply", "Make the site as a YAML file says", 200, func(ctx context.Context, in *bodyOfType[ConfigApply]) (Applied, error) {
		return s.ApplyConfig(ctx, in.Body)
	})
}
