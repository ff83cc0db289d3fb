//go:build goexperiment.jsonv2

package wireguard

import "encoding/json/v2"

func init() {
	codecs["jsonv2"] = codec{
		func(v any) ([]byte, error) { return json.Marshal(v) },
		func(b []byte, into any) error { return json.Unmarshal(b, into) },
	}
}
