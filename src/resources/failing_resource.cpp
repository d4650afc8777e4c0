#include <pmr_debug/failing_resource.hpp>

#include "os/brief_lock.hpp"
#include "resources/pass_through.hpp"
#include "stack/capture.hpp"

#include <new>

namespace pmr_debug {

namespace {

constexpr const char* type_name = "failing_resource";

struct failing_core : detail::pass_through_core {
    unsigned frames = 0;
    os::brief_lock lock;  // for all below
    failure_plan plan;
    std::uint64_t requests = 0;
    std::uint64_t failures = 0;
    std::size_t granted = 0;  // bytes of all requests let through
    induced_failure first;
    induced_failure last;
};

failing_core& of(detail::pass_through_core* core) noexcept {
    return *static_cast<failing_core*>(core);
}

// A number in [0, 1) that depends on both: splitmix64, a public-domain generator by Sebastiano Vigna.
double dice(std::uint64_t seed, std::uint64_t request) noexcept {
    std::uint64_t z = seed + request * 0x9E37'79B9'7F4A'7C15U;
    z = (z ^ (z >> 30U)) * 0xBF58'476D'1CE4'E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D0'49BB'1331'11EBU;
    return static_cast<double>((z ^ (z >> 31U)) >> 11U) * 0x1p-53;
}

bool fails(const failure_plan& plan, std::uint64_t n, std::uint64_t failures, std::size_t granted,
           std::size_t bytes) noexcept {
    if (plan.most_failures != 0 && failures >= plan.most_failures) {
        return false;
    }
    return (plan.fail_from != 0 && n >= plan.fail_from) || n == plan.fail_only ||
           (plan.fail_every != 0 && n % plan.fail_every == 0) || dice(plan.seed, n) < plan.probability ||
           (plan.budget_bytes != 0 && (granted > plan.budget_bytes || bytes > plan.budget_bytes - granted));
}

}  // namespace

failing_resource::failing_resource(const failing_options& o) : failing_resource(std::pmr::new_delete_resource(), o) {}

failing_resource::failing_resource(detail::upstream_argument upstream, const failing_options& o) {
    const trace_id born = stack::capture_from_caller(detail::pass_through_frames);
    auto* const core =
        detail::pass_through_core::make<failing_core>(upstream.get(), type_name, o.name, o.handler, born);
    core->frames = o.frames;
    core->plan = o.plan;
    core->hold_own = [](detail::pass_through_core& c, os::fork_locks& locks) noexcept { locks.take(of(&c).lock); };
    core_ = core;
    core->enlist(type_name, o.name, this, born);
}

void failing_resource::restart(const failure_plan& plan) noexcept {
    failing_core& core = of(core_);
    const os::brief_hold<true> hold(core.lock);
    core.plan = plan;
    core.requests = 0;
    core.failures = 0;
    core.granted = 0;
    core.first = {};
    core.last = {};
}

std::uint64_t failing_resource::requests() const noexcept {
    failing_core& core = of(core_);
    const os::look seen(core.lock);
    return core.requests;
}

std::uint64_t failing_resource::failures() const noexcept {
    failing_core& core = of(core_);
    const os::look seen(core.lock);
    return core.failures;
}

induced_failure failing_resource::first_failure() const noexcept {
    failing_core& core = of(core_);
    const os::look seen(core.lock);
    return core.first;
}

induced_failure failing_resource::last_failure() const noexcept {
    failing_core& core = of(core_);
    const os::look seen(core.lock);
    return core.last;
}

void* failing_resource::do_allocate(std::size_t bytes, std::size_t alignment) {
    failing_core& core = of(core_);
    core.check_request(bytes, alignment);
    induced_failure failure;
    {
        const os::brief_hold<true> hold(core.lock);
        const std::uint64_t n = ++core.requests;
        if (fails(core.plan, n, core.failures, core.granted, bytes)) {
            ++core.failures;
            failure.request = n;
        } else {
            core.granted += bytes;
        }
    }
    if (failure.request != 0) {
        failure.bytes = bytes;
        failure.alignment = alignment;
        failure.where = stack::capture_from_caller(core.frames);
        core.usage.fail();
        {
            const os::brief_hold<true> hold(core.lock);
            core.first = core.first.request == 0 ? failure : core.first;
            core.last = failure;
        }
        throw std::bad_alloc();
    }
    void* const p = core.ask(bytes, alignment);
    core.usage.add<true>(bytes);
    return p;
}

void failing_resource::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    if (core_->check_free(p, bytes, alignment)) {
        core_->give_back(p, bytes, alignment);
    }
}

}  // namespace pmr_debug
