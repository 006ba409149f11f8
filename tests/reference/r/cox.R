# coxph: coefficients, standard errors, log-likelihoods, tests, baseline hazard and curves; ridge; score at given values.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))

tight <- coxph.control(eps = 1e-13, toler.chol = 1e-14, iter.max = 60)
cumulative <- function(fit) {
  h <- basehaz(fit, centered = FALSE)
  jump <- diff(c(0, h$hazard)) > 0
  list(times = h$time[jump], hazard = h$hazard[jump])
}

# coxph halves its last steps when the log-likelihood moves by rounding alone; two Newton steps with R's own score and
# information end that. The log-likelihood at 0 and the tests are those of the plain fit.
polished <- function(y, x, ties) {
  plain <- coxph(y ~ x, ties = ties, control = tight)
  beta <- coef(plain)
  for (k in 1:3) {
    fit <- coxph(y ~ x, ties = ties, init = beta, control = coxph.control(iter.max = 0))
    beta <- beta + drop(vcov(fit) %*% colSums(as.matrix(residuals(fit, type = "score"))))
  }
  cat(ties, "polished by", max(abs(fit$coefficients - coef(plain)) / abs(coef(plain))), "\n")
  fit$loglik <- c(plain$loglik[1], fit$loglik[2])
  fit
}

one <- function(d, ties) {
  x <- d$x
  y <- surv_of(d)
  fit <- polished(y, x, ties)
  # two patients: the column minima, and the column means
  who <- rbind(apply(x, 2, min), colMeans(x))
  at <- as.numeric(quantile(d$time, c(.2, .5, .8), type = 1))
  curves <- t(exp(-exp(who %*% coef(fit)) %*% summary(survfit(fit, newdata = list(x = 0 * who[1, , drop = FALSE])),
                                                      times = at, extend = TRUE)$cumhaz))
  list(coefficients = unname(coef(fit)), standard_errors = unname(sqrt(diag(vcov(fit)))), log_likelihood = fit$loglik,
       likelihood_ratio = 2 * diff(fit$loglik), baseline = cumulative(fit), who = unname(who),
       times = at, curves = unname(t(curves)))
}

ridged <- function(d, theta, ties) {
  x <- d$x
  y <- surv_of(d)
  fit <- coxph(y ~ ridge(x, theta = theta, scale = FALSE), ties = ties,
               control = tight)
  list(theta = theta, coefficients = unname(coef(fit)), standard_errors = unname(sqrt(diag(fit$var2))),
       log_likelihood = fit$loglik)
}

data <- load_data()
both <- function(f) list(efron = f("efron"), breslow = f("breslow"))
write_fixture("cox", list(
  fits = lapply(data, function(d) both(function(ties) one(d, ties))),
  ridge = lapply(data[c("veteran", "gbsg", "heart")], function(d) both(function(ties) ridged(d, 7.5, ties)))
))
