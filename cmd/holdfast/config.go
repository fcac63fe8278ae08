package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	sitefile "github.com/holdfast-backup/holdfast/appliance/site"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) configCmd() *cobra.Command {
	return cli.Group("config", "The whole site as one YAML file", a.configExport(), a.configDiff(), a.configApply())
}

func (a *app) configExport() *cobra.Command {
	return &cobra.Command{Use: "export", Short: "Print the site as a YAML file", Args: cobra.NoArgs,
		Long: "Print the site as a YAML file. Secrets that the appliance keeps show as ***, and stay as they are where the file is applied to the same\nappliance. With --json, the file is in the key text.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			var t api.ConfigText
			if err := a.call(c.Context(), "GET", "/v1/config", nil, &t); err != nil {
				return err
			}
			if a.json {
				return a.print(t, nil)
			}
			if _, err := fmt.Fprint(a.out, t.Text); err != nil {
				return holdfast.Errorf(holdfast.Internal, "print", "%w", err)
			}
			return nil
		}}
}

func (a *app) configDiff() *cobra.Command {
	var file string
	c := &cobra.Command{Use: "diff -f FILE", Short: "Say what applying a file would change", Args: cobra.NoArgs,
		Long: "Say what applying a file would change. Nothing is changed. A section that is not in the file is left alone; in one that is there, what\nthe file does not name is removed.\n\nExit codes: 0 file and appliance agree, 3 they differ; else as everywhere.\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			_, plan, err := a.plan(c, file)
			if err != nil {
				return err
			}
			if err := a.print(plan, func(p *printer) { showPlan(p, plan) }); err != nil {
				return err
			}
			if len(plan.Steps) > 0 {
				return &cli.ExitError{Code: cli.Partial, Err: holdfast.Errorf(holdfast.Invalid, "", "file and appliance differ").Advise("'holdfast config apply -f %s' makes the appliance as the file says", file)}
			}
			return nil
		}}
	fileFlag(c, &file)
	return c
}

func fileFlag(c *cobra.Command, file *string) {
	c.Flags().StringVarP(file, "file", "f", "", "the YAML file; -: standard input")
	_ = c.MarkFlagRequired("file") // fails only for a flag that is not there
}

func (a *app) plan(c *cobra.Command, file string) (api.ConfigText, sitefile.Plan, error) {
	var plan sitefile.Plan
	b, err := a.readInput(file)
	if err != nil {
		return api.ConfigText{}, plan, err
	}
	t := api.ConfigText{Text: string(b)}
	return t, plan, a.call(c.Context(), "POST", "/v1/config/diff", t, &plan)
}

// showPlan prints a plan for people.
func showPlan(p *printer, plan sitefile.Plan) {
	if len(plan.Steps) == 0 {
		p.line("File and appliance agree.")
		return
	}
	count := map[sitefile.Verb]int{}
	for _, s := range plan.Steps {
		count[s.Verb]++
		p.line("%s %s %s", map[sitefile.Verb]string{sitefile.Create: "+", sitefile.Change: "~", sitefile.Delete: "-"}[s.Verb], s.Section, cli.Clean(s.Name))
		for _, l := range s.Lines {
			p.line("    %s", cli.Clean(l))
		}
		if s.Loss != "" {
			p.line("    LOSES: %s", cli.Clean(s.Loss))
		}
		if s.Refused != "" {
			p.line("    CANNOT BE DONE: %s", cli.Clean(s.Refused))
		}
	}
	p.line("%d to create, %d to change, %d to remove.", count[sitefile.Create], count[sitefile.Change], count[sitefile.Delete])
}

func (a *app) configApply() *cobra.Command {
	var file string
	var yes, dry bool
	c := &cobra.Command{Use: "apply -f FILE", Short: "Make the site as a file says", Args: cobra.NoArgs,
		Long: "Make the site as a file says, and print what is done. Applying a file again changes nothing. Keys of new hosts are printed once.\nWhere something would be lost it asks, or wants --yes.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			t, plan, err := a.plan(c, file)
			if err != nil {
				return err
			}
			if !a.json || dry {
				if err := a.print(plan, func(p *printer) { showPlan(p, plan) }); err != nil {
					return err
				}
			}
			if dry || len(plan.Steps) == 0 && !a.json {
				return nil
			}
			if plan.Destructive() {
				if file == "-" && !yes {
					return usage("a file from standard input leaves nothing to ask on: say --yes if what is marked may be lost")
				}
				if err := a.confirm(yes, "What is marked with LOSES will be lost: "+losses(plan)); err != nil {
					return err
				}
			}
			var r api.Applied
			if err := a.call(c.Context(), "POST", "/v1/config/apply", api.ConfigApply{Text: t.Text, Plan: plan.ID, Consent: plan.Destructive()}, &r); err != nil {
				return err
			}
			return a.showApplied(r)
		}}
	fileFlag(c, &file)
	c.Flags().BoolVar(&yes, "yes", false, "what is marked may be lost; do not ask")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	return c
}

func losses(plan sitefile.Plan) string {
	var out []string
	for _, s := range plan.Steps {
		if s.Loss != "" {
			out = append(out, fmt.Sprintf("%s %s: %s.", s.Section, cli.Clean(s.Name), cli.Clean(s.Loss)))
		}
	}
	return strings.Join(out, " ")
}

func (a *app) showApplied(r api.Applied) error {
	err := a.print(r, func(p *printer) {
		for _, m := range r.Made {
			p.line("Key of %s, shown once:\n\n%s\n\n  %s\n", cli.Clean(m.Name), m.Secret, cli.Clean(m.Text))
		}
		p.line("%d of %d steps are done.", r.Done, len(r.Plan.Steps))
	})
	if err == nil && r.Error != nil {
		return &cli.ExitError{Code: cli.Partial, Err: r.Error.Err()}
	}
	return err
}
