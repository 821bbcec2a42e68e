package metricsapi

import (
	"fmt"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
)

// admit sets up who is let in: in a cluster whom the API server knows and allows, as for every
// aggregated API; standalone who has a token, or everybody where there is no token file (Validate
// allows that on a loopback address only).
func admit(config *genericapiserver.Config, o Options) error {
	if o.Standalone {
		config.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
		a, err := standaloneAuthenticator(o.TokenAuthFile)
		config.Authentication.Authenticator = a
		return err
	}
	authn := genericoptions.NewDelegatingAuthenticationOptions()
	authn.RemoteKubeConfigFile = o.Kubeconfig
	if err := authn.ApplyTo(&config.Authentication, config.SecureServing, nil); err != nil {
		return fmt.Errorf("cannot let the API server authenticate callers (is it reachable, and may the account read configmap extension-apiserver-authentication in kube-system?): %w", err)
	}
	authz := genericoptions.NewDelegatingAuthorizationOptions()
	authz.RemoteKubeConfigFile = o.Kubeconfig
	if err := authz.ApplyTo(&config.Authorization); err != nil {
		return fmt.Errorf("cannot let the API server authorise callers: %w", err)
	}
	known := newScrapers(o.Now)
	config.Authentication.Authenticator = known.authenticator(config.Authentication.Authenticator)
	config.Authorization.Authorizer = known.authorizer(config.Authorization.Authorizer)
	return nil
}

func standaloneAuthenticator(tokenFile string) (authenticator.Request, error) {
	if tokenFile == "" {
		return anonymous.NewAuthenticator(nil), nil
	}
	if err := readable("--token-auth-file", tokenFile); err != nil {
		return nil, err
	}
	tokens, err := tokenfile.NewCSV(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("--token-auth-file %s: lines are token,user,uid: %w", tokenFile, err)
	}
	probes := anonymous.NewAuthenticator([]apiserver.AnonymousAuthCondition{{Path: "/healthz"}, {Path: "/livez"}, {Path: "/readyz"}})
	return union.New(bearertoken.New(tokens), probes), nil
}
