// The thin resources: limit_resource, failing_resource, logging_resource and immortal_proxy.

#include "support/checked.hpp"
#include "support/target.hpp"

#include <pmr_debug/failing_resource.hpp>
#include <pmr_debug/immortal_proxy.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/logging_resource.hpp>

#include <string_view>

namespace {

using namespace fuzz;

report_sink sink;

/// What the log must hold: whole lines, with the name in front.
struct log_check {
    bool broken = false;

    static void take(std::string_view text, void* context) noexcept {
        auto& self = *static_cast<log_check*>(context);
        self.broken = self.broken || text.empty() || text.back() != '\n' || text.find("\"subject\"") != 0;
    }
};

/// The plan of a failing_resource, done by hand.
struct failures {
    pmr_debug::failure_plan plan;
    std::uint64_t requests = 0;
    std::uint64_t failed = 0;
    std::size_t granted = 0;

    bool next(std::size_t bytes) {
        const std::uint64_t n = ++requests;
        const bool ended = plan.most_failures != 0 && failed >= plan.most_failures;
        const bool fails =
            !ended && ((plan.fail_from != 0 && n >= plan.fail_from) || (plan.fail_only != 0 && n == plan.fail_only) ||
                       (plan.fail_every != 0 && n % plan.fail_every == 0) ||
                       (plan.budget_bytes != 0 && granted + bytes > plan.budget_bytes));
        failed += fails ? 1 : 0;
        granted += fails ? 0 : bytes;
        return fails;
    }
};

class thin_session final : public checked_session {
public:
    thin_session(subject& s, const knowledge& k, fuzz_upstream& stub, fuzz_program& program, failures* plan)
        : checked_session(s, k, &stub, program, sink, {.second_thread = true}), plan_(plan) {}

private:
    verdict expect_request(std::size_t bytes, std::size_t alignment) override {
        if (plan_ != nullptr) {
            return plan_->next(bytes) ? verdict::refused : verdict::granted;
        }
        return checked_session::expect_request(bytes, alignment);
    }
    void expect_impossible(std::size_t bytes, std::size_t alignment) override {
        if (bytes <= SIZE_MAX / 2 && alignment <= SIZE_MAX / 2 - bytes && plan_ != nullptr) {
            static_cast<void>(plan_->next(bytes));
        }
        checked_session::expect_impossible(bytes, alignment);
    }
    void expect_free(const fuzz_block&, std::size_t, std::size_t) override {}

    /// These keep no records: only a null pointer and an alignment that cannot be are noticed.
    void extra(fuzz_input& in) override {
        switch (in.byte() % 4) {
            case 0:
                note("free null");
                expect(about_call(error_kind::null_free, nullptr, 8, 8));
                deallocate(nullptr, 8, 8);
                settle();
                break;
            case 1: bad_alignment(in); break;
            default:
                compare_statistics();
                compare_counts();
                break;
        }
    }

    failures* plan_;
};

/// The forwarder of a proxy, as a subject.
class proxy_subject final : public subject {
public:
    explicit proxy_subject(std::pmr::memory_resource* target)
        : proxy_(std::in_place, target,
                 pmr_debug::proxy_options{.name = "subject", .handler = &sink, .frames = 0, .report_live = false}) {}
    std::pmr::memory_resource& resource() noexcept override { return *proxy_->resource(); }
    pmr_debug::statistics stats() noexcept override { return proxy_->stats(); }
    pmr_debug::error_counts errors() noexcept override { return proxy_->errors(); }
    bool ok() noexcept override { return proxy_->ok(); }
    void destroy() noexcept override { proxy_->retire(); }

private:
    std::optional<pmr_debug::immortal_proxy> proxy_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    fuzz_program program("");
    fuzz_upstream stub(program);
    knowledge k{.is = family::pass_through};
    log_check log;
    failures plan;
    const auto use = [&](subject& s, const char* name, failures* f) {
        program.set_heading(name);
        thin_session session(s, k, stub, program, f);
        session.run(in);
        session.finish(in);
    };
    const std::size_t which = in.byte() % 8;
    if (which < 3) {
        pmr_debug::limit_options o{.name = "subject", .handler = &sink};
        o.limit_bytes = k.limit_bytes = which == 1 ? 0 : 1 + in.byte() * std::size_t{100};
        o.limit_blocks = k.limit_blocks = which == 0 ? 0 : 1 + in.byte();
        subject_of<pmr_debug::limit_resource> s(&stub, o);
        use(s, "limit_resource", nullptr);
    } else if (which < 6) {
        plan.plan.most_failures = in.byte() % 4 == 0 ? 1 + in.byte() : 0;
        const std::size_t n = 2 + in.byte();  // the first request is the session's own
        const std::size_t how = in.byte() % 4;
        plan.plan.fail_from = how == 0 ? n : 0;
        plan.plan.fail_only = how == 1 ? n : 0;
        plan.plan.fail_every = how == 2 ? n : 0;
        plan.plan.budget_bytes = how == 3 ? n * 200 : 0;
        subject_of<pmr_debug::failing_resource> s(
            &stub, pmr_debug::failing_options{.name = "subject", .handler = &sink, .plan = plan.plan, .frames = 0});
        plan.next(1);
        use(s, "failing_resource", &plan);
    } else if (which == 6) {
        subject_of<pmr_debug::logging_resource> s(
            &stub,
            pmr_debug::logging_options{.name = "subject", .handler = &sink, .sink = log_check::take, .context = &log});
        use(s, "logging_resource", nullptr);
        if (log.broken) {
            program.fail("a line of the log is broken");
        }
    } else if (in.byte() % 16 == 0) {  // a proxy is never freed, so they are few
        proxy_subject s(&stub);
        use(s, "immortal_proxy", nullptr);
    }
    return 0;
}
