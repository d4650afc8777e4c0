// tracking_resource over a watched upstream, under each policy.

#include "support/checked.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/tracking_resource.hpp>

namespace {

using namespace fuzz;

report_sink sink;

void run(fuzz_input& in) {
    with_policy(in.byte(), [&]<policy P>() {
        fuzz_program program("");
        fuzz_upstream stub(program);
        stub.keep_all(in.byte() % 4 == 0);
        knowledge k{.is = family::tracking, .rules = P};
        pmr_debug::tracking_options o{.name = "subject", .handler = &sink};
        static constexpr std::size_t records[] = {4096, 0, 1, 7, 64, 100, 200, 1000};
        o.freed_records = k.freed_records = records[in.byte() % 8];
        const std::size_t odd = in.byte();
        if (odd % 4 == 1) {
            o.limit_bytes = k.limit_bytes = 100 + in.byte() * std::size_t{100};
        } else if (odd % 4 == 2) {
            o.limit_blocks = k.limit_blocks = 2 + in.byte();
        }
        program.set_heading("tracking_resource, " + words(P) + ", limits " + std::to_string(o.limit_bytes) + " and " +
                            std::to_string(o.limit_blocks) + ", freed records " + std::to_string(o.freed_records));
        subject_of<pmr_debug::basic_tracking_resource<P>> s(&stub, o);
        checked_session session(s, k, &stub, program, sink, {.second_thread = true});
        session.run(in);
        session.finish(in);
    });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz_input in(data, size);
    run(in);
    return 0;
}
