package main

import (
	"context"
	"encoding/json"
	"reflect"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// job asks for a run that the daemon works on itself, follows it, and prints what it found; a run that did not end well is the command's
// error, after the report. If the command is interrupted, the run goes on.
func (a *app) job(c *cobra.Command, path string, report any, text func(p *printer)) error {
	var r api.Run
	if err := a.call(c.Context(), "POST", path, nil, &r); err != nil {
		return err
	}
	r, err := a.follow(c.Context(), r)
	if err != nil {
		return err
	}
	if len(r.Result) > 0 {
		if err := json.Unmarshal(r.Result, report); err != nil {
			return holdfast.Errorf(holdfast.Internal, "read report", "%w", err)
		}
		if err := a.print(reflect.ValueOf(report).Elem().Interface(), text); err != nil {
			return err
		}
	}
	return runError(r)
}

// await follows a run, which must end well, and reads what it found into report, if that is not nil.
func (a *app) await(ctx context.Context, r api.Run, report any) (api.Run, error) {
	r, err := a.follow(ctx, r)
	if err == nil {
		err = runError(r)
	}
	if err == nil && report != nil {
		if err = json.Unmarshal(r.Result, report); err != nil {
			err = holdfast.Errorf(holdfast.Internal, "read report", "%w", err)
		}
	}
	return r, err
}
