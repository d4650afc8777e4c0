// canary_resource over a watched upstream, under each policy, with large and small quarantines.

#include "support/checked.hpp"
#include "support/policies.hpp"
#include "support/target.hpp"

#include <pmr_debug/canary_resource.hpp>

namespace {

using namespace fuzz;

report_sink sink;

void run(fuzz_input& in) {
    with_policy(in.byte(), [&]<policy P>() {
        fuzz_program program("");
        fuzz_upstream stub(program);
        stub.keep_all(in.byte() % 4 == 0);
        knowledge k{.is = family::canary, .rules = P};
        pmr_debug::canary_options o{.name = "subject", .handler = &sink};
        static constexpr std::size_t records[] = {4096, 0, 1, 7, 64, 100, 200, 1000};
        o.freed_records = k.freed_records = records[in.byte() % 8];
        const std::size_t odd = in.byte();
        if (odd % 4 == 1) {
            k.tight = true;
            o.quarantine_bytes = in.byte() * std::size_t{64};
        } else if (odd % 4 == 2) {
            o.fill_seed = in.byte();
        } else if (odd % 4 == 3) {
            o.quarantine_bytes = (std::size_t{1} << 18) + in.byte() * std::size_t{1024};  // no block is too large
        }
        program.set_heading("canary_resource, " + words(P) + ", quarantine " + std::to_string(o.quarantine_bytes) +
                            ", fill seed " + std::to_string(o.fill_seed) + ", freed records " +
                            std::to_string(o.freed_records));
        subject_of<pmr_debug::basic_canary_resource<P>> s(&stub, o);
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
