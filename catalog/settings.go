package catalog

import "encoding/json"

// setting is the record of one setting.
type setting struct {
	Value json.RawMessage `json:"value"`
}

// PutSetting keeps a setting's value, which must be JSON.
func (tx *Tx) PutSetting(name string, value json.RawMessage) error {
	if err := checkName("put setting", name); err != nil {
		return err
	}
	return put(tx, settingKind, key(tSetting, []byte(name)), &setting{value})
}

// Setting returns a setting's value; NotExist if it was never put.
func (tx *Tx) Setting(name string) (json.RawMessage, error) {
	s, err := get[setting](tx, settingKind, key(tSetting, []byte(name)))
	return s.Value, err
}

// Settings returns all settings by name.
func (tx *Tx) Settings() (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	prefix := key(tSetting)
	for it, err := range tx.r.Scan(prefix, after(prefix)) {
		if err != nil {
			return nil, err
		}
		var s setting
		if err := decode(settingKind, it.Key, it.Value, &s); err != nil {
			return nil, err
		}
		out[string(it.Key[1:])] = s.Value
	}
	return out, nil
}

// DeleteSetting removes a setting. Removing what is not there is no error.
func (tx *Tx) DeleteSetting(name string) error {
	_, err := removeIndexed[setting](tx, settingKind, key(tSetting, []byte(name)), nil)
	return err
}
