# concordance: Harrell's C (timewt n) and Uno's (n/G2) with variance, cut at ymax; ties in time and in score.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))

one <- function(time, event, score, weight, ymax = NULL) {
  y <- Surv(time, event)
  fit <- if (is.null(ymax)) concordance(y ~ score, reverse = TRUE, timewt = weight) else
    concordance(y ~ score, reverse = TRUE, timewt = weight, ymax = ymax)
  list(value = unname(fit$concordance), variance = unname(fit$var), concordant = fit$count[["concordant"]],
       discordant = fit$count[["discordant"]], tied = fit$count[["tied.x"]])
}
cases <- function(time, event, score, ymax) {
  list(time = time, event = event, score = score, ymax = ymax,
       harrell = one(time, event, score, "n"), uno = one(time, event, score, "n/G2"),
       uno_cut = one(time, event, score, "n/G2", ymax))
}

data <- load_data()
data <- data[setdiff(names(data), c("lung7", "heart"))]
real <- lapply(data, function(d) {
  fit <- coxph(Surv(d$time, d$event) ~ d$x)
  # Rounded to one place: many scores tie. The times of rossi and of veteran tie by themselves.
  cases(d$time, d$event, round(drop(d$x %*% coef(fit)), 1), sort(d$time)[round(length(d$time) * .7)])
})
set.seed(30)
random <- lapply(1:200, function(k) {
  n <- sample(4:25, 1)
  time <- sample(1:(3 + k %% 9), n, TRUE)
  event <- runif(n) < .6
  event[which.min(time)] <- TRUE
  time[n] <- max(time) + 1  # somebody outlives the first event
  cases(time, event, round(rnorm(n), k %% 3 %/% 2), as.numeric(sort(time)[ceiling(n * .7)]))
})
write_fixture("concordance", list(sets = lapply(real, function(r) r[-(1:2)]), random = random))
