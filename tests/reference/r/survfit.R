# survfit: Kaplan-Meier with standard errors, five kinds of limits, quantiles, restricted means, Nelson-Aalen.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))

kinds <- c("log-log", "log", "plain", "logit", "arcsin")
one <- function(time, event, tau) {
  y <- Surv(time, event)
  fit <- survfit(y ~ 1, conf.type = "log-log")
  limits <- lapply(setNames(kinds, kinds), function(kind) {
    f <- survfit(y ~ 1, conf.type = kind)
    q <- quantile(f, c(.25, .5, .75))
    list(low = f$lower, high = f$upper, quantile_low = unname(q$lower), quantile_high = unname(q$upper))
  })
  rmean <- summary(fit, rmean = tau)$table
  list(times = fit$time, survival = fit$surv, standard_error = summary(fit, times = fit$time)$std.err,
       at_risk = fit$n.risk, events = fit$n.event, limits = limits,
       quantiles = unname(quantile(fit, c(.25, .5, .75))$quantile),
       cumulative_hazard = fit$cumhaz, cumulative_hazard_error = fit$std.chaz,
       tau = tau, restricted_mean = rmean[["rmean"]], restricted_mean_error = rmean[["se(rmean)"]])
}

# Small cases by name: curves that are flat at exactly 1/2, that end there, that never fall, that reach 0, with ties.
small <- list(
  flat_at_half = list(time = c(1, 2, 3, 4), event = c(1, 1, 1, 1)),
  flat_at_half_then_nothing = list(time = c(1, 2, 3, 4), event = c(1, 1, 0, 0)),
  flat_at_half_with_censoring = list(time = c(1, 2, 3, 4, 6), event = c(1, 0, 0, 1, 1)),
  never_falls = list(time = c(2, 3, 5), event = c(0, 0, 0)),
  reaches_zero_late = list(time = c(1, 1, 2, 2, 5), event = c(1, 0, 1, 0, 1)),
  event_and_censoring_tie_at_the_end = list(time = c(1, 4, 4), event = c(1, 1, 0)),
  one_third = list(time = c(1, 2, 3, 4, 5, 6), event = c(1, 1, 1, 1, 0, 1)),
  one_patient = list(time = 7, event = 1)
)

data <- load_data()
data <- data[setdiff(names(data), c("lung7", "heart"))]
write_fixture("survfit", list(
  probability = c(.25, .5, .75),
  curves = lapply(data, function(d) one(d$time, d$event, as.numeric(quantile(d$time, .8, type = 1)))),
  small = lapply(small, function(d) list(time = as.list(d$time), event = as.list(d$event == 1),
                                         r = lapply(one(d$time, d$event, max(d$time)), function(v) if (is.list(v)) lapply(v, function(w) lapply(w, as.list)) else if (length(v) == 1) v else as.list(v))))
))
